-- One contact of greylisting: greylist.Advance in Go, step by step. The
-- conformance suite holds both to the same.
--
-- KEYS: triplet, waiting (both of the correspondence), credit, room.
-- ARGV: 1 now, 2 delay, 3 window, 4 keep, 5 max delay (ms), 6 known after,
--       7 known age, 8 count every (ms), 9 dry run (1; 2: if it would pass for the first time; 0), 10 slack (ms that a
--       key outlives its use), 11 match, 12 credit (empty: nobody), 13 most sides,
--       14 most who wait in this part of the room, 15 the client's network, 16 and
--       17 the /48 and /32 above it (empty: none), 18 in a Cluster, where the credit
--       may be on another node: '?' to be told of a triplet that has passed and else
--       nothing, or 'v' and the value of the credit, whose new value is a ninth
--       thing that is returned ('-': as it was; ''; none any more).
-- Returns state, first contact (ms), wait (ms), attempts, passes for credit, how
-- many wait in this part, how many had to go, and how old the last one was (ms).
--
-- A triplet is four doubles: first, last, attempts, passes; a credit: first,
-- last, counted, passes. Who waits: since, last, then for each side first,
-- last, attempts, the length of its match and the match.
local now, delay, window, keep = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local known, age, every = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local dry, match = ARGV[9] == '1', ARGV[11]
local credits = ARGV[12] ~= '' and known > 0
local min, max, pack, unpack = math.min, math.max, struct.pack, struct.unpack

local function put(key, value, expires)
  if not dry then
    redis.call('SET', key, value, 'PX', string.format('%.0f', max(expires - now + tonumber(ARGV[10]), 1)))
  end
end

local cfirst, clast, counted, passes = 0, 0, 0, 0
local cfound, cahead = false, false
local apart, putvalue = ARGV[18], '-'

-- credit is the value of the credit, false for none.
local function credit()
  if not apart then return redis.call('GET', KEYS[3]) end
  return #apart > 1 and string.sub(apart, 2)
end

-- settle reads the credit, without what is over or was written ahead of time.
local function settle(value)
  if not value then return end
  cfound = true
  cfirst, clast, counted, passes = unpack('>dddd', value)
  cahead = max(cfirst, clast, counted) > now
  cfirst, clast, counted = min(cfirst, now), min(clast, now), min(counted, now)
  if now - clast > keep then cfirst, clast, counted, passes = 0, 0, 0, 0 end
end

local function putcredit()
  if apart then
    if not dry then putvalue = passes > 0 and pack('>dddd', cfirst, clast, counted, passes) or '' end
  elseif passes > 0 then
    put(KEYS[3], pack('>dddd', cfirst, clast, counted, passes), clast + keep)
  elseif cfound and not dry then
    redis.call('DEL', KEYS[3])
  end
end

local function count()
  if not credits then return end
  if passes == 0 then cfirst = now end
  if passes == 0 or now - counted >= every then
    passes = passes + 1
    counted = now
  end
  clast = now
  putcredit()
end

-- A triplet that has passed.
local told = redis.call('GET', KEYS[1])
if told then
  local first, last, attempts, n = unpack('>dddd', told)
  first, last = min(first, now), min(last, now)
  if now - last <= keep then
    local due = credits and (every == 0 or math.floor(now / every) ~= math.floor(last / every))
    put(KEYS[1], pack('>dddd', first, now, attempts, n + 1), now + keep)
    if due and apart ~= '?' then
      settle(credit())
      count()
    end
    return {3, first, 0, attempts, passes, -1, 0, due and 1 or 0, putvalue}
  end
  if not dry and apart ~= '?' then redis.call('DEL', KEYS[1]) end
end
if apart == '?' then return {-1, 0, 0, 0, 0, -1, 0, 0} end

-- A side that has credit.
if credits then
  settle(credit())
  if passes >= known and now - cfirst >= age then
    clast = now
    putcredit()
    return {4, 0, 0, 0, passes, -1, 0, 0, putvalue}
  end
end

-- Who waits.
local since, wlast, sides = 0, 0, {}
local waits = redis.call('GET', KEYS[2])
if waits then
  local at
  since, wlast, at = unpack('>dd', waits)
  since, wlast = min(since, now), min(wlast, now)
  while at <= #waits do
    local f, l, a, m
    f, l, a, m, at = unpack('>dddHc0', waits, at)
    f = min(f, now)
    if now - f <= window then sides[#sides + 1] = {f, l, a, m} end
  end
end
if since == 0 or now - wlast > window then since = now end
local state, mine = 1, nil
for _, s in ipairs(sides) do
  if s[4] == match then mine = s end
end
if not mine then
  state = 0
  mine = {now, now, 0, match}
  if #sides < tonumber(ARGV[13]) then
    sides[#sides + 1] = mine
  else
    -- The one that came last and was not tried again makes room.
    local newest = 1
    for i = 2, #sides do
      local s, n = sides[i], sides[newest]
      if s[3] < n[3] or (s[3] == n[3] and s[1] >= n[1]) then newest = i end
    end
    sides[newest] = mine
  end
end
mine[2] = now
local wait = delay - (now - mine[1])
local overdue = tonumber(ARGV[5]) - (now - since)
local delays = wait > 0 and overdue > 0
local out
if delays then
  mine[3] = mine[3] + 1
  out = {state, mine[1], min(wait, overdue), mine[3], passes, -1, 0, 0}
  if cahead or (cfound and passes == 0) then putcredit() end
else
  if ARGV[9] == '2' then dry = true end
  out = {2, mine[1], 0, mine[3], 0, -1, 0, 0}
  if wait > 0 then out[1], out[2] = 5, since end
  put(KEYS[1], pack('>dddd', mine[1], now, mine[3], 1), now + keep)
  -- As greylist.Waiting does: the last side takes the first place.
  for i = 1, #sides do
    if sides[i] == mine then
      local n = #sides
      sides[i] = sides[n]
      sides[n] = nil
      break
    end
  end
  since = 0
  if #sides > 0 then since = now end
  count()
  out[5] = passes
end
out[9] = putvalue
if #sides == 0 then
  if waits and not dry then redis.call('DEL', KEYS[2]) end
  return out
end
if dry then return out end
local text = {pack('>dd', since, now)}
for _, s in ipairs(sides) do text[#text + 1] = pack('>dddHc0', s[1], s[2], s[3], #s[4], s[4]) end
put(KEYS[2], table.concat(text), now + window)
if waits then return out end

-- A newcomer in the room. Each network has a queue, a list of "first /48 /32 key";
-- what stands in it can be long gone. In one sorted set the networks are by how
-- much they have in it, with as much by who has the oldest, in another by the
-- oldest alone. Where there is no place the oldest of the network that has most
-- goes, unless it was tried again: that goes when nothing else is left.
local room = KEYS[4]
local byLength, byAge, triedAgain = room .. '#length', room .. '#age', room .. '#tried'
local q, q48, q32 = ARGV[15], ARGV[16], ARGV[17]
local e = string.format('%.0f', now) .. ' ' .. q48 .. ' ' .. q32 .. ' ' .. KEYS[2]

-- widen counts what waits of a wide network of IPv6, by a hash of it.
local function widen(net, by)
  local field = 'w' .. tonumber(string.sub(redis.sha1hex(net), 1, 3), 16)
  return redis.call('HINCRBY', room, field, by)
end
if q32 ~= '' then
  -- One that has much is one network.
  local in32, in48 = widen(q32, 1), widen(q48, 1)
  if in32 > 64 then
    q = q32
  elseif in48 > 16 then
    q = q48
  end
end

-- rank puts a network into both sets. The score in the first is the length of
-- its queue and a fraction for the age of the oldest in it.
local function rank(net, length, oldest)
  redis.call('ZADD', byLength, string.format('%.17g', length + 1 - oldest / 4398046511104), net) -- 2^42 ms are 139 years
  redis.call('ZADD', byAge, string.format('%.0f', oldest), net)
end

-- popped takes the oldest out of a network's queue. The server may have dropped
-- any key of the room when it was short of memory.
local function popped(net, length)
  local queue = room .. net
  local first, h48, h32, key = string.match(redis.call('LPOP', queue) or '', '^(%d+) (%x*) (%x*) (.*)$')
  if first and h32 ~= '' then
    widen(h32, -1)
    widen(h48, -1)
  end
  local head = redis.call('LINDEX', queue, 0)
  if head then
    if length < 2 then length = 1 + redis.call('LLEN', queue) end
    rank(net, length - 1, tonumber(string.match(head, '^%d+')))
  else
    redis.call('ZREM', byLength, net)
    redis.call('ZREM', byAge, net)
  end
  return tonumber(first), key
end

local length = redis.call('RPUSH', room .. q, e)
if length == 1 then
  rank(q, 1, now)
else
  redis.call('ZINCRBY', byLength, 1, q)
end
local n = redis.call('HINCRBY', room, 'n', 1)
local counted, most = n, tonumber(ARGV[14])
-- What is too old leaves: now and then, and before somebody must go who is not.
if n > most or n % 16 == 0 then
  for _ = 1, n > most and 2 or 32 do
    local old = redis.call('ZRANGE', byAge, 0, 0, 'WITHSCORES')
    if not old[1] or now - tonumber(old[2]) <= window then break end
    if popped(old[1], redis.call('LLEN', room .. old[1])) then n = n - 1 end
  end
  local head = redis.call('LINDEX', triedAgain, 0)
  if head and now - tonumber(string.match(head, '^%d+')) > window then
    redis.call('LPOP', triedAgain)
    n = n - 1
  end
end
for _ = 1, 8 do
  if n <= most then break end
  local longest = redis.call('ZREVRANGE', byLength, 0, 0, 'WITHSCORES')
  if longest[1] == q and tonumber(longest[2]) < 2 then -- of those who have as much it has the last name
    longest = redis.call('ZREVRANGE', byLength, 1, 1, 'WITHSCORES')
  end
  local net, first, key, last = longest[1], nil, nil, nil
  if not net then
    -- There is nobody else but those who were tried again.
    first, key = string.match(redis.call('LPOP', triedAgain) or '', '^(%d+) (.*)$')
    if not first then -- nor them: the count is of keys that the server has dropped
      n = 1
      break
    end
    first, last, n = tonumber(first), true, n - 1
  else
    local length = math.floor(tonumber(longest[2]))
    first, key = popped(net, length)
    n = n - (first and 1 or length)
  end
  local v = key and key ~= KEYS[2] and redis.call('GET', key)
  if v then
    local _, _, tries = unpack('>ddd', v, 17)
    if tries < 2 or last then
      redis.call('DEL', key)
      out[7], out[8] = out[7] + 1, max(0, now - first)
    else
      redis.call('RPUSH', triedAgain, string.format('%.0f', first) .. ' ' .. key)
      n = n + 1
    end
  end
end
if n ~= counted then redis.call('HINCRBY', room, 'n', n - counted) end
out[6] = n
return out
