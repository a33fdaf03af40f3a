package pipeline

import (
	"maps"
	"math"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// histogram counts times. The library's own costs as much to observe as a
// small check takes; this one is two additions. It is safe for concurrent use.
type histogram struct {
	sum    atomic.Int64 // ns; on one cache line with the counts of short times
	counts [len(bounds) + 1]atomic.Uint64
	desc   *prometheus.Desc
	label  string
}

// bounds reach from a warm answer to a spent budget.
var bounds = [...]time.Duration{
	20 * time.Microsecond, 50 * time.Microsecond, 100 * time.Microsecond, 250 * time.Microsecond,
	time.Millisecond, 5 * time.Millisecond, 25 * time.Millisecond, 100 * time.Millisecond,
	500 * time.Millisecond, time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second, 20 * time.Second,
}

func (h *histogram) observe(d time.Duration) {
	i := 0
	for i < len(bounds) && d > bounds[i] {
		i++
	}
	h.counts[i].Add(1)
	h.sum.Add(int64(d))
}

// collect makes the library's form of it.
func (h *histogram) collect() prometheus.Metric {
	buckets := make(map[float64]uint64, len(bounds))
	total := uint64(0)
	for i, b := range bounds {
		total += h.counts[i].Load()
		buckets[b.Seconds()] = total
	}
	total += h.counts[len(bounds)].Load()
	return prometheus.MustNewConstHistogram(h.desc, total, math.Max(0, time.Duration(h.sum.Load()).Seconds()), buckets, h.label)
}

// histograms are those of one metric, by the value of its one label.
type histograms struct {
	desc *prometheus.Desc
	all  atomic.Pointer[map[string]*histogram]
}

func newHistograms(name, help, label string) *histograms {
	hs := &histograms{desc: prometheus.NewDesc(name, help, []string{label}, nil)}
	hs.all.Store(&map[string]*histogram{})
	return hs
}

// with returns the histogram of a label's value, made now if need be. It is
// called when pipelines are built, one at a time.
func (hs *histograms) with(value string) *histogram {
	old := *hs.all.Load()
	if h := old[value]; h != nil {
		return h
	}
	grown := maps.Clone(old)
	h := &histogram{desc: hs.desc, label: value}
	grown[value] = h
	hs.all.Store(&grown)
	return h
}

// Describe implements [prometheus.Collector].
func (hs *histograms) Describe(ch chan<- *prometheus.Desc) { ch <- hs.desc }

// Collect implements [prometheus.Collector].
func (hs *histograms) Collect(ch chan<- prometheus.Metric) {
	for _, h := range *hs.all.Load() {
		ch <- h.collect()
	}
}
