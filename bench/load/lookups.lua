-- Lookups of tags, customer after customer. Arguments: key, number of customers, first, pace.
require "report"

local customers, at, head, tail

function init(args)
  customers, at = tonumber(args[2]), tonumber(args[3])
  head = "GET /connected-content/tags?user_id=customer-"
  tail = " HTTP/1.1\r\nHost: " .. wrk.headers["Host"] .. "\r\nAuthorization: Bearer " .. args[1]
    .. "\r\nAccept: application/json\r\nUser-Agent: Braze Sender\r\n\r\n"
  pace(tonumber(args[4]))
end

function request()
  at = at + 1
  return head .. string.format("%07d", at % customers) .. tail
end
