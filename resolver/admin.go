package resolver

import (
	"fmt"
	"io"
	"time"

	"postern/internal/adminapi"
)

// Health is what `postern status` shows of name resolution.
type Health struct {
	Servers []ServerStatus `json:"servers"`
	Stats   Stats          `json:"stats"`
}

// Health returns how name resolution is.
func (r *Resolver) Health() Health { return Health{r.Status(), r.Stats()} }

// WriteStatus implements adminapi.Status.
func (h Health) WriteStatus(w io.Writer, now time.Time) {
	for _, s := range h.Servers {
		health := "healthy"
		if !s.Healthy {
			health = "NOT ANSWERING"
		}
		fmt.Fprintf(w, "dns       %s: %s, %d queries, %d failed, %s on average", s.Address, health, s.Queries, s.Failures, adminapi.Tidy(s.RTT))
		if s.LastError != "" {
			fmt.Fprintf(w, "; last error %s ago: %s", adminapi.Ago(now, s.LastErrorAt), s.LastError)
		}
		fmt.Fprintln(w)
	}
	d := h.Stats
	fmt.Fprintf(w, "          %d answers kept; %d look-ups from the cache, %d asked, %d stale; %d wait now\n", d.Entries, d.Hits, d.Misses, d.Stale, d.InFlight+d.Queued)
}
