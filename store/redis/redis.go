// Package redis keeps the state in a Redis (or Valkey) server that several
// gateways share. Each contact is one script, and one round trip.
//
// The server is never waited for longer than the configured timeout: when it
// does not answer, calls fail, and after some failures in a row a breaker has
// them fail at once until the server is back.
package redis

import (
	"context"
	"crypto/sha1" //nolint:gosec // the name that Redis gives a script
	"crypto/tls"
	"crypto/x509"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"github.com/sony/gobreaker/v2"
	"go.uber.org/zap"

	"postern/greylist"
	"postern/store"
)

//go:embed greylist.lua
var script string

// schema is the version of keys and values, a part of each key.
const schema = "1"

// slack is how much longer than its use a key is kept: its expiry is garbage
// collection, never the rule.
const slack = time.Hour

// probeEvery is how often the server is asked whether it is there, so that
// the breaker closes without traffic and the status is true.
const probeEvery = 2 * time.Second

// page is how many keys a listing reads at a time.
const page = 500

// Store is a connection to the server. It is safe for concurrent use.
type Store struct {
	cfg     store.RedisConfig
	client  *redis.Client
	auto    *redis.AutoPipeliner // nil: each call by itself
	breaker *gobreaker.TwoStepCircuitBreaker[struct{}]
	sha     string
	prefix  string // of every key
	log     *zap.Logger
	errors  prometheus.Counter
	seconds prometheus.Observer

	mu     sync.Mutex // guards status
	status store.Status

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
func Open(cfg store.RedisConfig, password string, log *zap.Logger, reg prometheus.Registerer) (*Store, error) {
	if len(cfg.Addrs) != 1 {
		return nil, fmt.Errorf("store: redis: %d addresses; one server is supported", len(cfg.Addrs))
	}
	o := &redis.Options{
		Addr: cfg.Addrs[0], Username: cfg.Username, Password: password, DB: cfg.DB,
		DialTimeout: 250 * time.Millisecond, DialerRetries: 1,
		ReadTimeout: cfg.Timeout.D() + cfg.Timeout.D()/2, WriteTimeout: cfg.Timeout.D() + cfg.Timeout.D()/2,
		PoolTimeout: 2 * cfg.Timeout.D(), PoolSize: cfg.Pool,
		// A script that is sent again counts twice.
		MaxRetries: -1, ContextTimeoutEnabled: true, DisableIdentity: true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
	if strings.HasPrefix(o.Addr, "/") {
		o.Network = "unix"
	}
	if cfg.TLS {
		t, err := tlsConfig(&cfg)
		if err != nil {
			return nil, err
		}
		o.TLSConfig = t
	}
	sum := sha1.Sum([]byte(script)) //nolint:gosec // as above
	s := &Store{
		cfg: cfg, client: redis.NewClient(o), sha: hex.EncodeToString(sum[:]), prefix: cfg.Prefix + ":" + schema + ":{g}:",
		log: log.Named("store"), status: store.Status{Kind: store.Redis, Where: strings.Join(cfg.Addrs, ", ")},
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
	s.done.Go(func() { s.probe(ctx) })
	return s, nil
}

func tlsConfig(cfg *store.RedisConfig) (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if host, _, err := net.SplitHostPort(cfg.Addrs[0]); err == nil {
		t.ServerName = host
	}
	if cfg.CAFile == "" {
		return t, nil
	}
	pem, err := os.ReadFile(cfg.CAFile)
	if err != nil {
		return nil, fmt.Errorf("store: redis: %w", err)
	}
	t.RootCAs = x509.NewCertPool()
	if !t.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("store: redis: %s holds no certificate", cfg.CAFile)
	}
	return t, nil
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
	for {
		_ = s.Ping(ctx) // it is noted
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

// TouchGreylist implements greylist.Store. Without the script on the server,
// which a restart takes away, it costs two round trips more.
func (s *Store) TouchGreylist(ctx context.Context, c *greylist.Contact) (greylist.Outcome, error) {
	b := make([]byte, 0, 256)
	b = store.AppendKey(append(b, s.prefix...), store.TripletKey, c.Who, c.Sender, c.Recipient)
	t := len(b)
	b = store.AppendKey(append(b, s.prefix...), store.ClientKey, c.Who)
	cl := len(b)
	b = store.AppendKey(append(b, s.prefix...), store.PairKey, c.Sender, c.Recipient)
	dry := 0
	if c.DryRun {
		dry = 1
	}
	r := &c.Rule
	args := []any{
		"evalsha", s.sha, 3, b[:t], b[t:cl], b[cl:],
		c.Time.UnixMilli(), r.Delay.Milliseconds(), r.Window.Milliseconds(), r.Keep.Milliseconds(), r.MaxDelay.Milliseconds(),
		r.KnownAfter, r.CountEvery.Milliseconds(), dry, slack.Milliseconds(),
	}
	for attempt := 0; ; attempt++ {
		// A command may still be in use by the library when its caller has
		// given up: each attempt has its own, and its own list.
		cmd := redis.NewCmd(ctx, append([]any(nil), args...)...)
		err := s.do(ctx, cmd)
		if err == nil {
			return outcome(cmd)
		}
		if attempt > 0 || !redis.HasErrorPrefix(err, "NOSCRIPT") {
			return greylist.Outcome{}, err
		}
		if err := s.do(ctx, redis.NewStringCmd(ctx, "script", "load", script)); err != nil {
			return greylist.Outcome{}, err
		}
	}
}

func outcome(cmd *redis.Cmd) (greylist.Outcome, error) {
	v, err := cmd.Int64Slice()
	if err == nil && len(v) != 5 {
		err = fmt.Errorf("%d values", len(v))
	}
	if err != nil {
		return greylist.Outcome{}, fmt.Errorf("store: redis: answer of the script: %w", err)
	}
	out := greylist.Outcome{
		State: greylist.State(v[0]), Wait: time.Duration(v[2]) * time.Millisecond, Attempts: int(v[3]), Passes: int(v[4]),
	}
	if v[1] != 0 {
		out.First = time.UnixMilli(v[1])
	}
	return out, nil
}

// each calls yield with batches of keys and values until it returns false.
// While the server moves its tables a key can come twice.
func (s *Store) each(ctx context.Context, kind byte, yield func(keys []string, values []any) (bool, error)) error {
	match := escape(s.prefix) + "*"
	if kind != 0 {
		match = escape(s.prefix) + string(rune(kind)) + "*"
	}
	var cursor uint64
	for {
		keys, next, err := s.client.Scan(ctx, cursor, match, page).Result()
		if err != nil {
			return fmt.Errorf("%w: redis: %w", store.ErrUnavailable, err)
		}
		if len(keys) > 0 {
			values, err := s.client.MGet(ctx, keys...).Result()
			if err != nil {
				return fmt.Errorf("%w: redis: %w", store.ErrUnavailable, err)
			}
			if more, err := yield(keys, values); err != nil || !more {
				return err
			}
		}
		if cursor = next; cursor == 0 {
			return nil
		}
	}
}

// escape makes a text that matches itself in Redis' patterns.
func escape(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`).Replace(s)
}

// entry reads a key and its value.
func (s *Store) entry(key string, value any) (greylist.Entry, bool) {
	rest, ok := strings.CutPrefix(key, s.prefix)
	if !ok || rest == "" {
		return greylist.Entry{}, false
	}
	e, ok := store.SplitKey(rest)
	text, isText := value.(string)
	if !ok || !isText {
		return e, false // gone in the meantime
	}
	var n [4]int64
	for i, f := range strings.SplitN(text, ":", 4) {
		v, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return e, false
		}
		n[i] = v
	}
	switch rest[0] {
	case store.TripletKey:
		e.First, e.Last, e.Attempts, e.Passes = time.UnixMilli(n[0]), time.UnixMilli(n[1]), int(n[2]), int(n[3])
	case store.ClientKey:
		e.Last, e.Passes = time.UnixMilli(n[0]), int(n[2])
	case store.PairKey:
		e.First, e.Last = time.UnixMilli(n[0]), time.UnixMilli(n[1])
	}
	return e, true
}

var kinds = map[string]byte{"triplet": store.TripletKey, "client": store.ClientKey, "pair": store.PairKey}

// ListGreylist implements greylist.AdminStore.
func (s *Store) ListGreylist(ctx context.Context, f greylist.Filter, _ time.Time, yield func(greylist.Entry) bool) error {
	n := 0
	return s.each(ctx, kinds[f.Kind], func(keys []string, values []any) (bool, error) {
		for i, key := range keys {
			e, ok := s.entry(key, values[i])
			if !ok || !store.Matches(&f, &e) {
				continue
			}
			if !yield(e) {
				return false, nil
			}
			if n++; f.Limit > 0 && n >= f.Limit {
				return false, nil
			}
		}
		return true, nil
	})
}

// ForgetGreylist implements greylist.AdminStore.
func (s *Store) ForgetGreylist(ctx context.Context, f greylist.Filter) (int, error) {
	total := 0
	err := s.each(ctx, kinds[f.Kind], func(keys []string, values []any) (bool, error) {
		var drop []string
		for i, key := range keys {
			if e, ok := s.entry(key, values[i]); ok && store.Matches(&f, &e) {
				drop = append(drop, key)
			}
		}
		if len(drop) == 0 {
			return true, nil
		}
		n, err := s.client.Unlink(ctx, drop...).Result()
		total += int(n)
		if err != nil {
			return false, fmt.Errorf("%w: redis: %w", store.ErrUnavailable, err)
		}
		return true, nil
	})
	return total, err
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
