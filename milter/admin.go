package milter

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// WriteStatus implements adminapi.Status.
func (s Status) WriteStatus(w io.Writer, _ time.Time) {
	if len(s.Listen) > 0 {
		fmt.Fprintf(w, "milter    %s; %d of %d sessions, %d messages\n", strings.Join(s.Listen, ", "), s.Sessions, s.Max, s.Messages)
	}
}
