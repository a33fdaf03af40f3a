package list

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/internal/conf"
	"postern/policy"
)

// Live keeps a Set up to date with its files. Its methods are safe for
// concurrent use.
type Live struct{}

// Metrics are the counters of the lists of one check.
type Metrics struct{}

// NewMetrics makes the metrics postern_<check>_list_..., or finds those that
// reg already has.
func NewMetrics(reg prometheus.Registerer, check string) *Metrics { return &Metrics{} }

// NewLive reads the sources as [Load] does. It starts nothing. metrics may be nil.
func NewLive(sources []string, opts Options, log *zap.Logger, metrics *Metrics) (*Live, conf.Faults) {
	return &Live{}, nil
}

// Start looks at the files every interval (not above 0: 2 s) until Stop.
func (l *Live) Start(interval time.Duration) {}

// Stop ends what Start began and waits for it. It can be called twice, and
// without Start.
func (l *Live) Stop() {}

// Set returns the present set.
func (l *Live) Set() *Set { return nil }

// Match is [Set.Match] of the present set.
func (l *Live) Match(req *policy.Request) *Entry { return l.Set().Match(req) }

// Reload reads all files again, changed or not. A file with faults keeps its
// last good entries; the faults are returned.
func (l *Live) Reload() conf.Faults { return nil }

// Adopt takes over the hit counts of the same entries of old.
func (l *Live) Adopt(old *Live) {}

// Status is the state of one source, for `postern status`.
type Status struct {
	Source  string    `json:"source"` // as configured
	File    string    `json:"file,omitempty"`
	Entries int       `json:"entries"`
	Expired int       `json:"expired"`
	Hits    uint64    `json:"hits"`
	Loaded  time.Time `json:"loaded"`            // when the present entries were read
	Fault   string    `json:"fault,omitempty"`   // why a later edit was not taken
	FaultAt time.Time `json:"fault_at,omitzero"` // when that was found
}

// Status returns the state of each source, in their order.
func (l *Live) Status() []Status { return nil }
