-- GET of random keys of the set that put.lua writes.
local keys = 100000
local thread_count = 0

function setup(thread)
  thread:set("id", thread_count)
  thread_count = thread_count + 1
end

function init(args)
  math.randomseed(os.time() + id * 7919)
  query = args[1] or ""
end

function request()
  return wrk.format("GET", "/kv/default/k" .. math.random(keys) .. query)
end
