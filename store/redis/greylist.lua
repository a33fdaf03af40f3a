-- One contact of greylisting: greylist.Advance in Go, step by step, over the
-- three keys that it touches. The conformance suite holds both to the same.
--
-- KEYS: triplet, client, pair.
-- ARGV: now, delay, window, keep, max delay (ms), known after, count every
--       (ms), dry run (1 or 0), slack (ms that a key outlives its use).
-- Returns state, first contact (ms), wait (ms), attempts, passes of the client.
local now, delay, window, keep = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local maxdelay, known, every, slack = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[9])
local dry = ARGV[8] == '1'

local old = redis.call('MGET', KEYS[1], KEYS[2], KEYS[3])

local function read(v, n)
  local out = {0, 0, 0, 0}
  if v then
    local i = 1
    for d in string.gmatch(v, '%d+') do
      out[i] = tonumber(d)
      i = i + 1
    end
  end
  return out
end

local t, c, p = read(old[1]), read(old[2]), read(old[3])
-- t: first, last, attempts, passes; c: last, counted, passes; p: first, last

local function put(i, text, expires)
  if dry or text == old[i] then return end
  if not text then
    if old[i] then redis.call('DEL', KEYS[i]) end
    return
  end
  redis.call('SET', KEYS[i], text, 'PX', string.format('%.0f', math.max(expires - now + slack, 1)))
end

local function putclient()
  if c[1] == 0 then
    put(2, false)
  else
    put(2, string.format('%.0f:%.0f:%.0f', c[1], c[2], c[3]), c[1] + keep)
  end
end

local function puttriplet()
  local expires = t[1] + window
  if t[4] > 0 then expires = t[2] + keep end
  put(1, string.format('%.0f:%.0f:%.0f:%.0f', t[1], t[2], t[3], t[4]), expires)
end

local function count()
  c[1] = math.max(c[1], now)
  if c[3] == 0 or now - c[2] >= every then
    c[3] = c[3] + 1
    c[2] = now
  end
end

if c[1] ~= 0 and now - c[1] > keep then c = {0, 0, 0} end
if known > 0 and c[3] >= known then
  c[1] = math.max(c[1], now)
  putclient()
  return {4, 0, 0, 0, c[3]}
end

if t[1] > now then t[1] = now end
if t[1] ~= 0 and ((t[4] == 0 and now - t[1] > window) or (t[4] > 0 and now - t[2] > keep)) then t = {0, 0, 0, 0} end
if t[4] > 0 then
  t[2] = math.max(t[2], now)
  t[4] = t[4] + 1
  count()
  puttriplet()
  putclient()
  return {3, t[1], 0, t[3], c[3]}
end

local state = 1
if t[1] == 0 then
  state = 0
  t[1] = now
end
t[2] = now
local wait = delay - (now - t[1])
if wait <= 0 then
  t[4] = 1
  count()
  puttriplet()
  putclient()
  put(3, false)
  return {2, t[1], 0, t[3], c[3]}
end

if p[1] > now then p[1] = now end
if p[1] == 0 or now - p[2] > window then p[1] = now end
p[2] = now
local overdue = maxdelay - (now - p[1])
if overdue <= 0 then
  local first = p[1]
  t[4] = 1
  count()
  puttriplet()
  putclient()
  put(3, false)
  return {5, first, 0, t[3], c[3]}
end
t[3] = t[3] + 1
puttriplet()
putclient()
put(3, string.format('%.0f:%.0f', p[1], p[2]), p[2] + window)
return {state, t[1], math.min(wait, overdue), t[3], c[3]}
