-- Script of wrk for scripts/bench: send the requests of a file once each, and print what happened as numbers.
-- The file has, for each request, its size as a decimal number, a line end, and its bytes.
local ffi = require("ffi")
ffi.cdef[[ typedef struct { long s; long ns; } vecmill_time; int clock_gettime(int, vecmill_time*); ]]
local clock = ffi.new("vecmill_time")
local threads = {}
local requests = {}
times = {}  -- global, because `done` runs in another state

local function now()
  ffi.C.clock_gettime(1, clock)  -- CLOCK_MONOTONIC
  return tonumber(clock.s) + tonumber(clock.ns) / 1e9
end

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  local file = assert(io.open(args[1], "rb"))
  for line in function() return file:read("*l") end do
    table.insert(requests, file:read(tonumber(line)))
  end
  file:close()
  sent = -1  -- wrk checks the first request before it starts
end

-- Except for the first request of a connection, wrk calls this when an answer is complete.
function request()
  sent = sent + 1
  if sent > 0 then
    table.insert(times, now())
  end
  if sent > #requests then
    wrk.thread:stop()
    return "GET / HTTP/1.1\r\nHost: bench\r\n\r\n"
  end
  return requests[math.max(sent, 1)]
end

function done(summary, latency, _)
  local errors = summary.errors
  print("errors", errors.connect, errors.read, errors.write, errors.timeout, errors.status)
  print("run", summary.duration, summary.requests)
  for _, thread in ipairs(threads) do
    for _, time in ipairs(thread:get("times")) do print(string.format("time\t%.6f", time)) end
  end
  for i = 1, #latency do print("latency", latency(i)) end
end
