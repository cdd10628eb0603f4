-- PUT of 1 KiB values to random keys of a fixed set, spread over the nodes given after `--`.
local keys = 100000
local value = string.rep("x", 1024)
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
  local key = math.random(keys)
  return wrk.format("PUT", "/kv/default/k" .. key .. query, nil, value)
end
