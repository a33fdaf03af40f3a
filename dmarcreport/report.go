package dmarcreport

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/internal/sendmail"
)

// Options are what the reporter is given.
type Options struct {
	Hostname string
	Store    Store
	// LookupTXT returns the texts of a name, none if there are none. An error is
	// temporary.
	LookupTXT func(ctx context.Context, name string) ([]string, error)
	Log       *zap.Logger
	Registry  prometheus.Registerer
}

// Reporter counts and reports. It is safe for concurrent use.
type Reporter struct {
	cfg      Config
	hostname string
	store    Store
	lookup   func(ctx context.Context, name string) ([]string, error)
	log      *zap.Logger
	metrics  *metrics

	mu      sync.Mutex
	waiting map[string]*pending
	today   string                         // what counted is of
	counted map[string]map[string]struct{} // rows by domain

	cancel context.CancelFunc
	done   chan struct{}
}

// metrics outlive a reload.
type metrics struct {
	sent    *prometheus.CounterVec
	dropped prometheus.Counter
}

// New returns a reporter; cfg has been validated. prev, which may be nil, is the
// one that it takes the place of: what waits there moves over. It starts nothing.
func New(cfg Config, o Options, prev *Reporter) (*Reporter, error) {
	r := &Reporter{
		cfg: cfg, hostname: o.Hostname, store: o.Store, lookup: o.LookupTXT, log: o.Log.Named("dmarcreport"),
		waiting: map[string]*pending{}, counted: map[string]map[string]struct{}{},
	}
	if prev != nil {
		r.metrics = prev.metrics
		return r, nil
	}
	r.metrics = &metrics{
		sent:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_dmarc_reports_total", Help: "Reports by what became of them."}, []string{"result"}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_dmarc_report_messages_dropped_total", Help: "Messages that are in no report, since there was no room."}),
	}
	for _, c := range []prometheus.Collector{r.metrics.sent, r.metrics.dropped} {
		if err := o.Registry.Register(c); err != nil {
			return nil, fmt.Errorf("dmarc_reports: %w", err)
		}
	}
	return r, nil
}

// Name is its name in the status.
func (r *Reporter) Name() string { return "dmarc_reports" }

const (
	flushEvery = 30 * time.Second
	sendEvery  = 10 * time.Minute
	// settle is how long after midnight nothing is sent: other gateways may still
	// have rows of the day in memory.
	settle   = 15 * time.Minute
	sendTime = time.Minute // for one report
	lease    = 15 * time.Minute
	pause    = 10 * time.Second // the most that a store may take
)

// Start begins to store rows and to send reports.
func (r *Reporter) Start() {
	if !r.cfg.Enabled || r.cancel != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel, r.done = cancel, make(chan struct{})
	go func() {
		defer close(r.done)
		flush, send := time.NewTicker(flushEvery), time.NewTicker(sendEvery)
		defer flush.Stop()
		defer send.Stop()
		for {
			select {
			case <-flush.C:
				r.flushSoon(ctx)
			case <-send.C:
				if err := r.sendDue(ctx, time.Now()); err != nil && ctx.Err() == nil {
					r.log.Warn("DMARC reports could not be looked through", zap.Error(err))
				}
			case <-ctx.Done():
				return
			}
		}
	}()
}

// Stop ends what Start began, and stores what waits. It can be called twice, and
// without Start.
func (r *Reporter) Stop() {
	if r.cancel == nil {
		return
	}
	r.cancel()
	<-r.done
	r.flushSoon(context.Background())
}

func (r *Reporter) flushSoon(ctx context.Context) {
	c, cancel := context.WithTimeout(ctx, pause)
	defer cancel()
	r.flush(c)
}

// state is what became of the report of a domain and day.
type state struct {
	What string // "", "sent", "busy", "failed", "unwanted"
	At   int64  // when; of "busy" and "failed" when it may be tried again
	Why  string
	text string // as it is stored
}

func parseState(text string) state {
	parts := strings.SplitN(text, " ", 3)
	s := state{text: text}
	if len(parts) >= 2 {
		at, err := strconv.ParseInt(parts[1], 10, 64)
		if err != nil {
			return s
		}
		s.What, s.At = parts[0], at
	}
	if len(parts) == 3 {
		s.Why = parts[2]
	}
	return s
}

func (s *state) open(now time.Time) bool {
	return s.What == "" || (s.What == "busy" || s.What == "failed") && now.Unix() >= s.At
}

// due returns when the report of a domain and day goes out: at its own time
// after midnight, so that not all go at once.
func (r *Reporter) due(rep *report) time.Time {
	h := fnv.New64a()
	_, _ = h.Write([]byte(rep.domain)) // it never fails
	after := time.Duration(0)
	if spread := r.cfg.Spread.D(); spread > 0 {
		after = time.Duration(h.Sum64() % uint64(spread))
	}
	return dayOf(rep.date).Add(day + settle + after)
}

// sendDue sends all reports whose time has come.
func (r *Reporter) sendDue(ctx context.Context, now time.Time) error {
	all, err := r.reports(ctx, "", "")
	if err != nil {
		return err
	}
	for _, rep := range all {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if now.Before(r.due(rep)) || now.After(dayOf(rep.date).Add(day+r.cfg.Keep.D())) {
			continue
		}
		if _, err := r.sendOne(ctx, rep, now, false); err != nil {
			return err
		}
	}
	return nil
}

// errTaken is what sendOne says of a report that was sent, or is being sent.
var errTaken = errors.New("it was sent, or another gateway is sending it")

// sendOne sends a report once, whatever the number of gateways: who puts "busy"
// into the store does it. A gateway that dies at that leaves it to another, a
// quarter of an hour later, with the same Report-ID. Errors are those of the
// store. again sends what was sent, too.
func (r *Reporter) sendOne(ctx context.Context, rep *report, now time.Time, again bool) (state, error) {
	key := stateKey(rep.date, rep.domain)
	old, err := r.store.Load(ctx, key)
	if err != nil {
		return state{}, err
	}
	was := parseState(old)
	if !was.open(now) && (!again || was.What == "busy") {
		was.Why = errTaken.Error()
		return was, nil
	}
	busy := fmt.Sprintf("busy %d %s", now.Add(lease).Unix(), r.hostname)
	if ok, err := r.store.Swap(ctx, key, old, busy, r.expires(rep.date)); err != nil || !ok {
		return state{What: "busy", Why: errTaken.Error()}, err
	}
	c, cancel := context.WithTimeout(ctx, sendTime)
	defer cancel()
	to, skipped, err := r.deliver(c, rep, now)
	is := state{What: "sent", At: now.Unix(), Why: strings.Join(to, " ")}
	switch {
	case err != nil:
		is.What, is.At, is.Why = "failed", now.Add(time.Hour).Unix(), err.Error()
		r.log.Warn("a DMARC report was not sent, it is tried again", zap.String("domain", rep.domain), zap.String("day", rep.date), zap.Error(err))
	case len(to) == 0:
		is.What, is.Why = "unwanted", strings.Join(skipped, "; ")
		r.log.Info("a DMARC report has no destination", zap.String("domain", rep.domain), zap.String("day", rep.date), zap.Strings("skipped", skipped))
	default:
		r.log.Info("a DMARC report was sent", zap.String("domain", rep.domain), zap.String("day", rep.date), zap.Strings("to", to),
			zap.Int("rows", len(rep.rows)), zap.Int64("messages", rep.count))
	}
	r.metrics.sent.WithLabelValues(is.What).Inc()
	is.text = fmt.Sprintf("%s %d %s", is.What, is.At, clip(is.Why, 500))
	// What was sent must be written down though time is up.
	w, end := context.WithTimeout(context.WithoutCancel(ctx), pause)
	defer end()
	_, err = r.store.Swap(w, key, busy, is.text, r.expires(rep.date))
	return is, err
}

// deliver hands the mails to Postfix and returns to whom, and who was left out.
func (r *Reporter) deliver(ctx context.Context, rep *report, now time.Time) (to, skipped []string, err error) {
	dests, skipped, err := r.verified(ctx, rep.domain, rep.newest.RUA, r.cfg.MaxDestinations)
	if err != nil {
		return nil, nil, fmt.Errorf("destinations: %w", err)
	}
	packed, err := r.pack(rep)
	if err != nil {
		return nil, nil, err
	}
	for _, d := range dests {
		message := r.message(rep, packed, d.Address, now)
		if d.Limit > 0 && int64(len(message)) > d.Limit {
			skipped = append(skipped, fmt.Sprintf("%s (the report has %d bytes, it takes %d)", d.Address, len(message), d.Limit))
			continue
		}
		if err := sendmail.Send(ctx, r.cfg.Sendmail, r.cfg.Email, []string{d.Address}, message); err != nil {
			if len(to) > 0 { // not twice to the others
				skipped = append(skipped, d.Address+" ("+err.Error()+")")
				continue
			}
			return nil, skipped, err
		}
		to = append(to, d.Address)
	}
	return to, skipped, nil
}

func clip(s string, n int) string { return s[:min(len(s), n)] }
