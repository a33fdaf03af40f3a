package dmarcreport

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
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

	memory *memory

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
	}
	if prev != nil {
		r.metrics, r.memory = prev.metrics, prev.memory
		return r, nil
	}
	r.memory = &memory{waiting: map[string]*pending{}, counted: map[string]map[string]struct{}{}}
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
	grace    = 3 * time.Second  // for a report under way when the daemon stops
	retry    = time.Hour
	// leastPass is how many reports are sent in a pass at least, if there are so
	// many. Others wait for the next one.
	leastPass = 500
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
	What string   `json:"what"`          // "", "sent", "busy", "failed", "unwanted"
	At   int64    `json:"at"`            // when; of "busy" and "failed" when it may be tried again
	Why  string   `json:"why,omitempty"` // of "busy" who is at it
	To   []string `json:"to,omitempty"`  // who has got it
}

// parseState reads what is stored. What cannot be read is none.
func parseState(text string) (s state) {
	if json.Unmarshal([]byte(text), &s) != nil {
		return state{}
	}
	return s
}

func (s *state) String() string {
	text, _ := json.Marshal(s) // strings and numbers always can be
	return string(text)
}

// open reports whether the report of a day is to be sent. One that was sent by
// hand before the day was over does not count for it.
func (s *state) open(date string, now time.Time) bool {
	switch s.What {
	case "busy", "failed":
		return now.Unix() >= s.At
	case "sent", "unwanted":
		end := dayOf(date).Add(day)
		return s.At < end.Unix() && !now.Before(end)
	}
	return true
}

// due returns when the report of a day and domain, a hash, goes out: at its own
// time after midnight, so that not all go at once.
func (r *Reporter) due(date, domain string) time.Time {
	h := fnv.New64a()
	_, _ = h.Write([]byte(domain)) // it never fails
	after := time.Duration(0)
	if spread := r.cfg.Spread.D(); spread > 0 {
		after = time.Duration(h.Sum64() % uint64(spread))
	}
	return dayOf(date).Add(day + settle + after)
}

// sendDue sends the reports whose time has come.
func (r *Reporter) sendDue(ctx context.Context, now time.Time) error {
	keys, err := r.todo(ctx, now, max(leastPass, r.cfg.MaxDomains/20))
	if err != nil || len(keys) == 0 {
		return err
	}
	wanted := make(map[string]bool, len(keys))
	for _, k := range keys {
		wanted[k] = true
	}
	all, err := r.collect(ctx, func(date, domain string) bool { return wanted["s/"+date+"/"+domain] })
	if err != nil {
		return err
	}
	for _, rep := range all {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if _, _, err := r.sendOne(ctx, rep, now, false); err != nil {
			return err
		}
	}
	return nil
}

// sendOne sends a report once, whatever the number of gateways: who puts "busy"
// into the store does it. A gateway that dies at that leaves it to another, a
// quarter of an hour later, with the same Report-ID. taken is set when it was
// sent before, or another is sending it. Errors are those of the store, and of a
// sendmail that is not there. again sends what was sent, too.
func (r *Reporter) sendOne(ctx context.Context, rep *report, now time.Time, again bool) (is state, taken bool, err error) {
	key := stateKey(rep.date, rep.domain)
	old, err := r.store.Load(ctx, key)
	if err != nil {
		return state{}, false, err
	}
	was := parseState(old)
	if !was.open(rep.date, now) && (!again || was.What == "busy" && now.Unix() < was.At) {
		return was, true, nil
	}
	done := was.To
	if was.What == "sent" || again { // the whole report, to all
		done = nil
	}
	busy := state{What: "busy", At: now.Add(lease).Unix(), Why: r.hostname, To: done}
	if ok, err := r.store.Swap(ctx, key, old, busy.String(), r.expires(rep.date)); err != nil || !ok {
		return busy, true, err
	}
	// What is handed over when the daemon stops may end.
	c, cancel := context.WithTimeout(context.WithoutCancel(ctx), sendTime)
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(grace, cancel) })()
	is, lasting := r.deliver(c, rep, now, done)
	if is.What == "failed" && ctx.Err() != nil {
		is.At = now.Unix() // another gateway may go on
	}
	fields := []zap.Field{
		zap.String("domain", rep.domain), zap.String("day", rep.date), zap.Strings("to", is.To), zap.Int("rows", len(rep.rows)), zap.Int64("messages", rep.count), zap.String("detail", is.Why),
	}
	switch is.What {
	case "failed":
		r.log.Warn("a DMARC report was not sent, it is tried again", fields...)
	case "unwanted":
		r.log.Info("a DMARC report has no destination", fields...)
	default:
		r.log.Info("a DMARC report was sent", fields...)
	}
	r.metrics.sent.WithLabelValues(is.What).Inc()
	// What was sent must be written down though time is up.
	w, end := context.WithTimeout(context.WithoutCancel(ctx), pause)
	defer end()
	_, err = r.store.Swap(w, key, busy.String(), is.String(), r.expires(rep.date))
	return is, false, errors.Join(err, lasting)
}

// deliver hands the mails to Postfix but for those who have it. lasting is what
// other reports meet, too.
func (r *Reporter) deliver(ctx context.Context, rep *report, now time.Time, done []string) (is state, lasting error) {
	is = state{At: now.Unix(), To: done}
	v := r.verify(ctx, rep.domain, rep.newest.RUA, r.cfg.MaxDestinations)
	failed, skipped := v.failed, v.skipped
	packed, err := r.pack(rep, now)
	if err != nil {
		failed = append(failed, err.Error())
		v.to = nil
	}
	for _, d := range v.to {
		if slices.Contains(done, d.Address) {
			continue
		}
		message := r.message(rep, packed, d.Address, now)
		if d.Limit > 0 && int64(len(message)) > d.Limit {
			skipped = append(skipped, fmt.Sprintf("%s (the report has %d bytes, it takes %d)", d.Address, len(message), d.Limit))
			continue
		}
		if err := sendmail.Send(ctx, r.cfg.Sendmail, r.cfg.Email, []string{d.Address}, message); err != nil {
			failed = append(failed, d.Address+" ("+err.Error()+")")
			if errors.Is(err, sendmail.ErrLasting) {
				lasting = err
				break
			}
			continue
		}
		is.To = append(is.To, d.Address)
	}
	switch is.Why = clip(strings.Join(append(failed, skipped...), "; ")); {
	case len(failed) > 0:
		is.What, is.At = "failed", now.Add(retry).Unix()
	case len(is.To) > 0:
		is.What = "sent"
	default:
		is.What = "unwanted"
	}
	return is, lasting
}

// maxWhy is how much is kept of why a report was not sent.
const maxWhy = 500

func clip(s string) string {
	if len(s) > maxWhy {
		s = strings.ToValidUTF8(s[:maxWhy], "") + "..."
	}
	return s
}
