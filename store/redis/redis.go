// Package redis keeps the state in a Redis (or Valkey) server that several
// gateways share: one, one that Sentinel watches, or a Cluster. Each contact is
// one script, and one round trip; in a Cluster at most two before the answer,
// and a third for what a side earns.
//
// The server is never waited for longer than the configured timeout: when it
// does not answer, calls fail, and after some failures in a row a breaker has
// them fail at once until the server is back.
package redis

import (
	"context"
	"crypto/sha1" //nolint:gosec // the name that Redis gives a script
	_ "embed"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/sony/gobreaker/v2"
	"go.uber.org/zap"

	"postern/greylist"
	"postern/store"
)

//go:embed greylist.lua
var script string

//go:embed forget.lua
var forgetScript string

// schema is the version of keys and values, a part of each key.
const schema = "2"

// slack is how much longer than its use a key is kept: its expiry is garbage
// collection, never the rule.
const slack = time.Hour

// probeEvery is how often the server is asked whether it is there, so that
// the breaker closes without traffic and the status is true.
const probeEvery = 2 * time.Second

// oldEvery is how often keys of an earlier version are looked for.
const oldEvery = 10 * time.Minute

// page is how many keys a listing reads at a time.
const page = 500

// Store is a connection to the server. It is safe for concurrent use.
type Store struct {
	cfg     store.RedisConfig
	room    room
	client  client
	cluster bool                 // keys are spread over several servers
	auto    *redis.AutoPipeliner // nil: each call by itself
	breaker *gobreaker.TwoStepCircuitBreaker[struct{}]
	sha     string
	prefix  string // of every key
	log     *zap.Logger
	errors  prometheus.Counter
	seconds prometheus.Observer

	mu     sync.Mutex // guards status
	status store.Status

	trims    trims
	old      atomic.Bool // there may be keys of an earlier version
	counts   counts
	counting context.Context // ends with the store
	stop     context.CancelFunc
	once     sync.Once
	done     sync.WaitGroup
	end      error
}

var _ store.Store = (*Store)(nil)

// Open returns a store; it does not wait for the server, which may come later.
// It starts a probe, which Close ends.
func Open(whole store.Config, password, sentinelPassword string, log *zap.Logger, reg prometheus.Registerer) (*Store, error) {
	cfg := whole.Redis
	client, err := connect(&cfg, password, sentinelPassword)
	if err != nil {
		return nil, err
	}
	sum := sha1.Sum([]byte(script)) //nolint:gosec // as above
	s := &Store{
		cfg: cfg, client: client, cluster: cfg.Cluster, sha: hex.EncodeToString(sum[:]), prefix: cfg.Prefix + ":" + schema + ":",
		room: room{most: whole.MaxWaiting},
		log:  log.Named("store"), status: store.Status{Kind: store.Redis, Where: strings.Join(cfg.Addrs, ", ")},
	}
	redis.SetLogger(quiet{s.log})
	if cfg.AutoPipeline {
		auto, err := s.client.AsyncAutoPipeline()
		if err != nil {
			return nil, errors.Join(fmt.Errorf("store: redis: %w", err), s.client.Close())
		}
		s.auto = auto
	}
	s.newMetrics(reg)
	s.breaker = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Name: "redis", MaxRequests: 1, Timeout: cfg.BreakerPause.D(),
		ReadyToTrip:   func(c gobreaker.Counts) bool { return int(c.ConsecutiveFailures) >= cfg.BreakerFailures },
		IsSuccessful:  func(err error) bool { return err == nil || !unavailable(err) },
		IsExcluded:    func(err error) bool { return errors.Is(err, context.Canceled) },
		OnStateChange: s.changed,
	})
	ctx, cancel := context.WithCancel(context.Background())
	s.counting, s.stop = ctx, cancel
	s.old.Store(true)
	s.done.Go(func() { s.probe(ctx) })
	return s, nil
}

func (s *Store) newMetrics(reg prometheus.Registerer) {
	failed := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "postern_store_errors_total", Help: "Operations that the store could not do.",
	})
	seconds := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "postern_store_redis_seconds", Help: "Time of a call to Redis.",
		Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25},
	})
	reg.MustRegister(failed, seconds, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "postern_store_breaker_open", Help: "1 while Redis is left alone because it does not answer.",
	}, func() float64 {
		if s.breaker.State() == gobreaker.StateOpen {
			return 1
		}
		return 0
	}))
	s.errors, s.seconds = failed, seconds
}

// quiet takes the library's own log lines.
type quiet struct{ log *zap.Logger }

// Printf implements the library's logger.
func (q quiet) Printf(_ context.Context, format string, args ...any) {
	q.log.Debug("redis client", zap.String("text", fmt.Sprintf(format, args...)))
}

// unavailable reports whether an error means that the server cannot be used
// now; others are answers.
func unavailable(err error) bool {
	if errors.Is(err, redis.Nil) {
		return false
	}
	var re redis.Error
	if !errors.As(err, &re) {
		return true
	}
	for _, p := range []string{"LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "OOM", "TRYAGAIN", "NOAUTH", "WRONGPASS", "NOPERM", "MISCONF", "BUSY"} {
		if strings.HasPrefix(re.Error(), p) {
			return true
		}
	}
	return false
}

// changed is called by the breaker.
func (s *Store) changed(_ string, _, to gobreaker.State) {
	switch to {
	case gobreaker.StateOpen:
		s.log.Error("Redis does not answer: it is left alone for a while, and what needs it goes by on_error",
			zap.Strings("addrs", s.cfg.Addrs), zap.Duration("pause", s.cfg.BreakerPause.D()), zap.String("last_error", s.lastError()))
	case gobreaker.StateClosed:
		s.log.Info("Redis is back", zap.Strings("addrs", s.cfg.Addrs))
	case gobreaker.StateHalfOpen: // one call tries
	}
}

func (s *Store) lastError() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status.LastError
}

// probe asks the server now and then, through the breaker.
func (s *Store) probe(ctx context.Context) {
	t := time.NewTicker(min(probeEvery, max(s.cfg.BreakerPause.D(), 100*time.Millisecond)))
	defer t.Stop()
	var looked time.Time // for keys of an earlier version
	for {
		if s.Ping(ctx) == nil && s.old.Load() && time.Since(looked) > oldEvery { // a failure is noted
			looked = time.Now()
			s.lookForOld(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// do runs one command within the time limit, behind the breaker.
func (s *Store) do(ctx context.Context, cmd redis.Cmder) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: redis: %w", store.ErrUnavailable, err)
	}
	done, err := s.breaker.Allow()
	if err != nil {
		return fmt.Errorf("%w: redis: %w", store.ErrUnavailable, err)
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout.D())
	defer cancel()
	start := time.Now()
	if s.auto != nil {
		err = s.auto.Submit(ctx, cmd).WaitContext(ctx)
	} else {
		err = s.client.Process(ctx, cmd)
	}
	s.seconds.Observe(time.Since(start).Seconds())
	s.note(err)
	done(err)
	if err != nil && unavailable(err) {
		return fmt.Errorf("%w: redis: %w", store.ErrUnavailable, err)
	}
	return err
}

// note keeps what the last call says of the server.
func (s *Store) note(err error) {
	bad := err != nil && unavailable(err) && !errors.Is(err, context.Canceled)
	if bad {
		s.errors.Inc()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if bad {
		s.status.LastError, s.status.ErrorAt, s.status.Healthy = err.Error(), time.Now(), false
	} else if err == nil {
		s.status.Healthy = true
	}
}

// parts is how many parts the correspondences are spread over. The keys of a
// part bear its number as their hash tag, so that a script finds them together
// and a Cluster can share them out.
const parts = 64

// appendCorrespondence appends a key of a correspondence, but for its prefix:
// tag, kind and parts.
func (s *Store) appendCorrespondence(b []byte, part uint64, kind byte, names ...string) []byte {
	b = appendTag(append(b, s.prefix...), 'g', part)
	return store.AppendKey(b, kind, names...)
}

// creditKey appends the key of a credit.
func (s *Store) creditKey(b []byte, credit string) []byte {
	return store.AppendKey(appendTag(append(b, s.prefix...), 'k', partOf(credit)), store.CreditKey, credit)
}

func appendTag(b []byte, kind byte, part uint64) []byte {
	b = append(b, '{', kind)
	b = strconv.AppendUint(b, part, 10)
	return append(b, "}:"...)
}

// partOf returns the part of a correspondence, the same on every gateway.
func partOf(names ...string) uint64 {
	h := fnv.New64a()
	for _, n := range names {
		_, _ = h.Write([]byte(n)) // it never fails
		_, _ = h.Write([]byte{0})
	}
	return h.Sum64() % parts
}

// waitingKey is the kind of the keys of those who wait, roomKey that of the
// room they are in.
const (
	waitingKey = 'w'
	roomKey    = 'r'
)

// networkOf returns the name of a network as it stands in keys. Names of
// different length are of different networks.
func networkOf(addr netip.Addr, bits int) string {
	if !addr.IsValid() {
		return "none"
	}
	p, _ := addr.Prefix(bits) // it has that many
	return hex.EncodeToString(p.Addr().AsSlice()[:bits/8])
}

// TouchGreylist implements greylist.Store. Without the script on the server,
// which a restart takes away, it costs two round trips more.
func (s *Store) TouchGreylist(ctx context.Context, c *greylist.Contact) (greylist.Outcome, error) {
	out, fresh, err := s.touch(ctx, c)
	if err == nil && fresh && s.old.Load() {
		if t, ok := s.oldTriplet(ctx, c); ok {
			return s.adopt(ctx, c, t)
		}
	}
	return out, err
}

// touch runs the script. fresh says that the contact is new to the server.
func (s *Store) touch(ctx context.Context, c *greylist.Contact) (out greylist.Outcome, fresh bool, err error) {
	part := partOf(c.Sender, c.Recipient)
	b := s.appendCorrespondence(make([]byte, 0, 512), part, store.TripletKey, c.Match, c.Sender, c.Recipient)
	t := len(b)
	b = s.appendCorrespondence(b, part, waitingKey, c.Sender, c.Recipient)
	w := len(b)
	// A credit is of one side and many correspondences: its tag is its own.
	b = s.creditKey(b, c.Credit)
	k := len(b)
	b = append(appendTag(append(b, s.prefix...), 'g', part), roomKey)
	dry := 0
	switch {
	case c.DryRun:
		dry = 1
	case c.Hold:
		dry = 2
	}
	network, net48, net32 := networkOf(c.Addr, 24), "", ""
	if c.Addr.Is6() {
		network, net48, net32 = networkOf(c.Addr, 64), networkOf(c.Addr, 48), networkOf(c.Addr, 32)
	}
	r := &c.Rule
	run := func(more ...any) *redis.Cmd {
		args := []any{
			4, b[:t], b[t:w], b[w:k], b[k:],
			c.Time.UnixMilli(), r.Delay.Milliseconds(), r.Window.Milliseconds(), r.Keep.Milliseconds(), r.MaxDelay.Milliseconds(),
			r.KnownAfter, r.KnownAge.Milliseconds(), r.CountEvery.Milliseconds(), dry, slack.Milliseconds(), c.Match, c.Credit, greylist.MaxSides,
			max(1, s.room.most/parts), network, net48, net32,
		}
		if s.cluster { // a key of another node must not be among them
			args[3] = b[:t]
		}
		return redis.NewCmd(ctx, append(args, more...)...)
	}
	if s.cluster {
		return s.touchApart(ctx, c, string(b[w:k]), run)
	}
	cmd, err := s.script(ctx, script, s.sha, func() *redis.Cmd { return run() })
	if err != nil {
		return greylist.Outcome{}, false, err
	}
	out, _, err = s.outcome(cmd, c)
	return out, out.State == greylist.FirstContact, err
}

// script runs a script; run makes its command, without the name and the script.
// The server is given the text when it does not know it, as after a restart.
func (s *Store) script(ctx context.Context, text, sha string, run func() *redis.Cmd) (*redis.Cmd, error) {
	// A command may still be in use by the library when its caller has
	// given up: each attempt has its own.
	cmd := redis.NewCmd(ctx, append([]any{"evalsha", sha}, run().Args()...)...)
	err := s.do(ctx, cmd)
	if err != nil && redis.HasErrorPrefix(err, "NOSCRIPT") {
		cmd = redis.NewCmd(ctx, append([]any{"eval", text}, run().Args()...)...)
		err = s.do(ctx, cmd)
	}
	return cmd, err
}

// outcome reads the answer of the script. rest is what it says of the credit,
// and of a triplet that has passed, whether it is to be counted.
func (s *Store) outcome(cmd *redis.Cmd, c *greylist.Contact) (out greylist.Outcome, rest credited, err error) {
	all, err := cmd.Slice()
	if err == nil && len(all) < 8 {
		err = fmt.Errorf("%d values", len(all))
	}
	var v [8]int64
	for i := 0; err == nil && i < len(v); i++ {
		var ok bool
		if v[i], ok = all[i].(int64); !ok {
			err = fmt.Errorf("%T for a number", all[i])
		}
	}
	if err != nil {
		return out, rest, fmt.Errorf("store: redis: answer of the script: %w", err)
	}
	if len(all) > 8 {
		rest.next, rest.changed = all[8].(string)
		rest.changed = rest.changed && rest.next != "-"
	}
	if rest.state = v[0]; v[0] < 0 {
		return out, rest, nil
	}
	if v[0] == int64(greylist.KnownTriplet) {
		rest.due = v[7] == 1
	}
	out = greylist.Outcome{
		State: greylist.State(v[0]), Wait: time.Duration(v[2]) * time.Millisecond, Attempts: int(v[3]), Passes: int(v[4]),
	}
	if v[1] != 0 {
		out.First = time.UnixMilli(v[1])
	}
	if v[5] >= 0 {
		s.room.note(v[5], v[6], time.Duration(v[7])*time.Millisecond, c)
	}
	return out, rest, nil
}

// each calls yield with batches of keys and values until it returns false.
// While the server moves its tables a key can come twice.
func (s *Store) each(ctx context.Context, kind string, yield func(keys, values []string) (bool, error)) error {
	match := escape(s.prefix)
	switch kind {
	case "":
		match += "{[gk]*"
	case greylist.KindCredit:
		match += "{k*}:" + string(rune(store.CreditKey)) + "*"
	case greylist.KindTriplet:
		match += "{g*}:" + string(rune(store.TripletKey)) + "*"
	default:
		match += "{g*}:" + string(rune(waitingKey)) + "*"
	}
	return s.scan(ctx, match, func(keys []string) (bool, error) {
		keys = slices.DeleteFunc(keys, func(k string) bool { _, ok := s.rest(k); return !ok })
		if len(keys) == 0 {
			return true, nil
		}
		values, err := s.get(ctx, keys)
		if err != nil {
			return false, err
		}
		texts := make([]string, len(keys))
		for i := range values {
			texts[i] = values[i].value
		}
		return yield(keys, texts)
	})
}

// escape makes a text that matches itself in Redis' patterns.
func escape(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`).Replace(s)
}

// rest returns what stands behind prefix and tag in the key of a record; ok is
// false for other keys, those of the room among them.
func (s *Store) rest(key string) (rest string, ok bool) {
	rest, ok = strings.CutPrefix(key, s.prefix+"{")
	if !ok {
		return "", false
	}
	_, rest, ok = strings.Cut(rest, "}:")
	return rest, ok && rest != "" && rest[0] != roomKey
}

// entries reads a key and its value.
func (s *Store) entries(key, text string) []greylist.Entry {
	rest, ok := s.rest(key)
	if !ok || text == "" {
		return nil // gone in the meantime
	}
	if rest[0] == waitingKey {
		sender, recipient, ok := store.SplitParts([]byte(rest[1:]))
		if !ok {
			return nil
		}
		return waitingEntries(text, sender, recipient)
	}
	e, ok := store.SplitKey(rest)
	if !ok {
		return nil
	}
	if e.Kind == greylist.KindCredit {
		cr, ok := parseCredit(text)
		if !ok {
			return nil
		}
		e.First, e.Last, e.Counted, e.Passes = time.UnixMilli(cr.First), time.UnixMilli(cr.Last), time.UnixMilli(cr.Counted), int(cr.Passes)
		return []greylist.Entry{e}
	}
	t, ok := parseTriplet(text)
	if !ok {
		return nil
	}
	e.First, e.Last, e.Attempts, e.Passes = time.UnixMilli(t.First), time.UnixMilli(t.Last), int(t.Attempts), int(t.Passes)
	return []greylist.Entry{e}
}

// number reads a whole number as the script writes it: a double.
func number(s string) int64 {
	return int64(math.Float64frombits(binary.BigEndian.Uint64([]byte(s[:8]))))
}

// appendNumbers writes whole numbers as the script does.
func appendNumbers(b []byte, numbers ...int64) []byte {
	for _, n := range numbers {
		b = binary.BigEndian.AppendUint64(b, math.Float64bits(float64(n)))
	}
	return b
}

// parseTriplet reads a triplet that has passed.
func parseTriplet(text string) (t greylist.Triplet, ok bool) {
	if len(text) != 32 {
		return t, false
	}
	return greylist.Triplet{First: number(text), Last: number(text[8:]), Attempts: uint32(number(text[16:])), Passes: uint32(number(text[24:]))}, true
}

// parseCredit reads a credit.
func parseCredit(text string) (cr greylist.Credit, ok bool) {
	if len(text) != 32 {
		return cr, false
	}
	return greylist.Credit{First: number(text), Last: number(text[8:]), Counted: number(text[16:]), Passes: uint32(number(text[24:]))}, true
}

// parseWaiting reads who waits in a correspondence.
func parseWaiting(text string) (w greylist.Waiting) {
	const side = 8 + 8 + 8 + 2
	if len(text) < 16 {
		return w
	}
	w.Since, w.Last = number(text), number(text[8:])
	for text = text[16:]; len(text) >= side; {
		n := int(binary.BigEndian.Uint16([]byte(text[24:])))
		if len(text) < side+n {
			break
		}
		s := greylist.Side{Match: text[side : side+n], First: number(text), Last: number(text[8:]), Attempts: uint32(number(text[16:]))}
		if w.Side.First == 0 {
			w.Side = s
		} else {
			w.More = append(w.More, s)
		}
		text = text[side+n:]
	}
	return w
}

// appendWaiting writes who waits, as the script does.
func appendWaiting(b []byte, w *greylist.Waiting) []byte {
	b = appendNumbers(b, w.Since, w.Last)
	side := func(s *greylist.Side) {
		b = appendNumbers(b, s.First, s.Last, int64(s.Attempts))
		b = binary.BigEndian.AppendUint16(b, uint16(len(s.Match)))
		b = append(b, s.Match...)
	}
	side(&w.Side)
	for i := range w.More {
		side(&w.More[i])
	}
	return b
}

// waitingEntries is the administrator's view of who waits.
func waitingEntries(text, sender, recipient string) (out []greylist.Entry) {
	w := parseWaiting(text)
	if w.Side.First == 0 {
		return nil
	}
	for _, s := range append([]greylist.Side{w.Side}, w.More...) {
		out = append(out, greylist.Entry{
			Kind: greylist.KindWaiting, Match: s.Match, Sender: sender, Recipient: recipient,
			First: time.UnixMilli(s.First), Last: time.UnixMilli(s.Last), Attempts: int(s.Attempts), Since: time.UnixMilli(w.Since),
		})
	}
	return out
}

// ListGreylist implements greylist.AdminStore.
func (s *Store) ListGreylist(ctx context.Context, f greylist.Filter, now time.Time, yield func(greylist.Entry) bool) error {
	pick := store.Picker(&f, yield)
	return s.each(ctx, f.Kind, func(keys, values []string) (bool, error) {
		for i, key := range keys {
			for _, e := range s.entries(key, values[i]) {
				if e.Kind == greylist.KindWaiting && now.Sub(e.First) > s.room.window() {
					continue
				}
				if !pick(e) {
					return false, nil
				}
			}
		}
		return true, nil
	})
}

// ForgetGreylist implements greylist.AdminStore.
func (s *Store) ForgetGreylist(ctx context.Context, f greylist.Filter) (int, error) {
	total := 0
	err := s.each(ctx, f.Kind, func(keys, values []string) (bool, error) {
		var drop []string
		for i, key := range keys {
			entries := s.entries(key, values[i])
			var picked []greylist.Entry
			for _, e := range entries {
				if store.Matches(&f, &e) {
					picked = append(picked, e)
				}
			}
			switch {
			case len(picked) == 0:
			case len(picked) == len(entries):
				drop = append(drop, key)
				total += len(picked)
			default:
				n, err := s.forgetSides(ctx, key, picked)
				if total += n; err != nil {
					return false, err
				}
			}
		}
		if len(drop) == 0 {
			return true, nil
		}
		pipe := s.client.Pipeline()
		for _, key := range drop {
			pipe.Unlink(ctx, key)
		}
		if _, err := pipe.Exec(ctx); err != nil {
			return false, fmt.Errorf("%w: redis: %w", store.ErrUnavailable, err)
		}
		return true, nil
	})
	return total, err
}

// forgetSides takes some of those who wait out of a correspondence.
func (s *Store) forgetSides(ctx context.Context, key string, sides []greylist.Entry) (int, error) {
	args := make([]any, len(sides))
	for i := range sides {
		args[i] = sides[i].Match
	}
	n, err := s.client.Eval(ctx, forgetScript, []string{key}, args...).Int()
	if err != nil {
		return 0, fmt.Errorf("%w: redis: %w", store.ErrUnavailable, err)
	}
	return n, nil
}

// CountGreylist implements greylist.AdminStore.
func (s *Store) CountGreylist(ctx context.Context, now time.Time) (greylist.Counts, error) {
	var n greylist.Counts
	err := s.ListGreylist(ctx, greylist.Filter{}, now, func(e greylist.Entry) bool {
		n.Add(&e)
		return true
	})
	return n, err
}

// Status implements store.Store.
func (s *Store) Status() store.Status {
	s.mu.Lock()
	st := s.status
	s.mu.Unlock()
	st.Breaker = s.breaker.State().String()
	st.Healthy = st.Healthy && st.Breaker != gobreaker.StateOpen.String()
	st.Room = s.room.status(time.Now())
	return st
}

// Ping implements store.Store.
func (s *Store) Ping(ctx context.Context) error {
	return s.do(ctx, redis.NewStatusCmd(ctx, "ping"))
}

// Close implements store.Store.
func (s *Store) Close(context.Context) error {
	s.once.Do(func() {
		s.stop()
		s.done.Wait()
		if s.auto != nil {
			s.end = s.auto.Close()
		}
		s.end = errors.Join(s.end, s.client.Close())
	})
	return s.end
}
