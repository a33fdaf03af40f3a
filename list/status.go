package list

import (
	"fmt"
	"io"
	"strings"
	"time"

	"postern/internal/adminapi"
)

// WriteStatus writes how lists of a kind are, as adminapi.Status does.
func WriteStatus(w io.Writer, kind string, lists []Status, now time.Time) {
	for _, l := range lists {
		fmt.Fprintf(w, "list      %s: %s: %d entries, %d hits", kind, l.Source, l.Entries, l.Hits)
		if l.Expired > 0 {
			fmt.Fprintf(w, ", %d EXPIRED", l.Expired)
		}
		if l.File != "" {
			fmt.Fprintf(w, ", read %s ago", adminapi.Ago(now, l.Loaded))
		}
		fmt.Fprintln(w)
		if l.Fault != "" {
			fmt.Fprintf(w, "          EDIT NOT TAKEN %s ago, the entries above stay in force:\n", adminapi.Ago(now, l.FaultAt))
			for line := range strings.Lines(l.Fault) {
				fmt.Fprintf(w, "          %s\n", strings.TrimRight(line, "\n"))
			}
		}
	}
}
