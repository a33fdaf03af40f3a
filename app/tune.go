package app

import (
	"os"
	"runtime/debug"
	rt "runtime/metrics"
	"sync"
	"time"
)

// tuner sets the garbage collector for a process whose live memory is small
// and whose requests are many: it lets garbage grow to spareMemory before it
// is collected, whatever lives beside it. By itself the collector would run
// after as much garbage as there is live memory, ten times as often.
type tuner struct {
	stop chan struct{}
	once sync.Once
	done sync.WaitGroup
}

const (
	spareMemory = 128 << 20
	tuneEvery   = time.Second
)

// startTuner starts to tune, unless GOGC in the environment says how.
func startTuner() *tuner {
	t := &tuner{stop: make(chan struct{})}
	if os.Getenv("GOGC") == "" {
		t.done.Go(t.run)
	}
	return t
}

func (t *tuner) run() {
	tick := time.NewTicker(tuneEvery)
	defer tick.Stop()
	live := []rt.Sample{{Name: "/gc/heap/live:bytes"}}
	last := 100
	defer debug.SetGCPercent(last)
	for {
		rt.Read(live)
		percent := gcPercent(live[0].Value.Uint64())
		// Each change stops the world for a moment.
		if d := percent - last; d > last/4 || -d > last/4 {
			debug.SetGCPercent(percent)
			last = percent
		}
		select {
		case <-tick.C:
		case <-t.stop:
			return
		}
	}
}

// gcPercent is how much garbage there may be beside live bytes, in percent of
// them.
func gcPercent(live uint64) int {
	if live == 0 {
		return 400 // nothing has been collected yet
	}
	return int(min(max(spareMemory*100/live, 50), 800))
}

func (t *tuner) close() {
	if t == nil {
		return // not started
	}
	t.once.Do(func() { close(t.stop) })
	t.done.Wait()
}
