package policyd

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// WriteStatus implements adminapi.Status.
func (s Status) WriteStatus(w io.Writer, _ time.Time) {
	fmt.Fprintf(w, "policy    %s; %d of %d connections, %d requests\n", strings.Join(s.Listen, ", "), s.Connections, s.Max, s.Requests)
}
