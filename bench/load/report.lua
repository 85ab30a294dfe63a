-- Ends a run with one line of JSON, which bench/wrk.py reads. Times are in milliseconds.
function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '{"requests":%d,"seconds":%.6f,"p50":%.3f,"p99":%.3f,"refused":%d,"broken":%d}\n',
    summary.requests, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end

-- Makes each connection pause before each request; 0 means no pause.
function pace(milliseconds)
  if milliseconds > 0 then
    function delay() return milliseconds end
  end
end
