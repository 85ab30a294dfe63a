-- Webhooks, each a different event of a different customer. Arguments: key, run, first, pace.
require "report"

local run, at, head

function init(args)
  run, at = args[2], tonumber(args[3])
  head = "POST /webhooks/braze HTTP/1.1\r\nHost: " .. wrk.headers["Host"]
    .. "\r\nAuthorization: Bearer " .. args[1]
    .. "\r\nContent-Type: application/json\r\nUser-Agent: Braze Sender\r\nContent-Length: "
  pace(tonumber(args[4]))
end

function request()
  at = at + 1
  local body = string.format(
    '{"braze_campaign_id":"0d2f6f5e-summer","user_id":"customer-%07d","dispatch_id":"%s-%d"}',
    at % 10000000, run, at)
  return head .. #body .. "\r\n\r\n" .. body
end
