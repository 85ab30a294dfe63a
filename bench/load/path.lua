-- The same path again and again. Arguments: path.
require "report"

local whole

function init(args)
  whole = "GET " .. args[1] .. " HTTP/1.1\r\nHost: " .. wrk.headers["Host"] .. "\r\n\r\n"
end

function request()
  return whole
end
