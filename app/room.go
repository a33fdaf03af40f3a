package app

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/store"
)

// roomWatch tells when first contacts are pushed out before they can have come
// back: greylisting then delays honest newcomers for longer than it says.
type roomWatch struct {
	store store.Store
	log   *zap.Logger
	stop  chan struct{}
	done  sync.WaitGroup
	told  time.Time // of the present shortage
}

const (
	roomEvery = 10 * time.Second
	// roomAgain is how often a shortage that goes on is told.
	roomAgain = 10 * time.Minute
)

func watchRoom(st store.Store, log *zap.Logger) *roomWatch {
	w := &roomWatch{store: st, log: log.Named("greylist"), stop: make(chan struct{})}
	w.done.Go(func() {
		tick := time.NewTicker(roomEvery)
		defer tick.Stop()
		for {
			select {
			case <-w.stop:
				return
			case now := <-tick.C:
				w.look(now)
			}
		}
	})
	return w
}

func (w *roomWatch) look(now time.Time) {
	r := w.store.Status().Room
	switch {
	case r.TooShort && now.Sub(w.told) >= roomAgain:
		w.told = now
		w.log.Error("first contacts are pushed out before a retry can come: a flood, or max_waiting is too small",
			zap.Duration("they_live", r.Lives), zap.Int("waiting", r.Waiting), zap.Int("max_waiting", r.Most), zap.Uint64("pushed_out", r.PushedOut))
	case !r.Pressed && !w.told.IsZero():
		w.told = time.Time{}
		w.log.Info("first contacts have room again", zap.Int("waiting", r.Waiting))
	}
}

func (w *roomWatch) end() {
	if w != nil {
		close(w.stop)
		w.done.Wait()
	}
}

// roomMetrics registers the figures of the room.
func roomMetrics(st store.Store, reg prometheus.Registerer) {
	gauge := func(name, help string, of func(store.Room) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "postern_greylist_" + name, Help: help}, func() float64 { return of(st.Status().Room) })
	}
	reg.MustRegister(
		gauge("waiting", "First contacts that wait.", func(r store.Room) float64 { return float64(r.Waiting) }),
		gauge("waiting_life_seconds", "How long a first contact lives while newcomers push others out; 0 while they do not.", func(r store.Room) float64 { return r.Lives.Seconds() }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "postern_greylist_pushed_out_total", Help: "First contacts that made room for others."},
			func() float64 { return float64(st.Status().Room.PushedOut) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "postern_greylist_unremembered_total", Help: "Passes for which the store had no room."},
			func() float64 { return float64(st.Status().Room.Unremembered) }),
	)
}
