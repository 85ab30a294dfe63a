// Node-RED as it comes, without the editor and telemetry.
module.exports = {
  uiHost: '127.0.0.1',
  httpAdminRoot: false,
  logging: { console: { level: 'error' } },
  functionExternalModules: false,
  telemetry: { enabled: false },
};
