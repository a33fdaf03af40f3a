package main

import (
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// progress shows how far something long has come, on a terminal only.
type progress struct {
	n    atomic.Int64
	stop chan struct{}
	done chan struct{}
}

// redraw is how often progress is shown again.
const redraw = 200 * time.Millisecond

// startProgress shows "1234 of 5678 what, 90 a second" on standard error until
// finish is called. Without a total, 0, it leaves that out.
func startProgress(cmd *cobra.Command, what string, total int) *progress {
	p := &progress{stop: make(chan struct{}), done: make(chan struct{})}
	f, ok := cmd.ErrOrStderr().(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		close(p.done)
		return p
	}
	go func() {
		defer close(p.done)
		tick := time.NewTicker(redraw)
		defer tick.Stop()
		start, drawn := time.Now(), false
		for {
			select {
			case <-p.stop:
				if drawn {
					fmt.Fprint(f, "\r\x1b[K")
				}
				return
			case <-tick.C:
				drawn = true
				fmt.Fprint(f, "\r\x1b[K", progressLine(p.n.Load(), int64(total), what, time.Since(start)))
			}
		}
	}()
	return p
}

func progressLine(n, total int64, what string, since time.Duration) string {
	of := ""
	if total > 0 {
		of = fmt.Sprintf(" of %d", total)
	}
	rate := int64(float64(n) / max(since.Seconds(), 0.001))
	return fmt.Sprintf("%d%s %s, %d a second", n, of, what, rate)
}

// add counts.
func (p *progress) add(n int) { p.n.Add(int64(n)) }

// finish takes the line away.
func (p *progress) finish() {
	close(p.stop)
	<-p.done
}
