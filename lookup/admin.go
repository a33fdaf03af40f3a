package lookup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"postern/internal/adminapi"
)

// WriteStatus implements adminapi.Status.
func (s Status) WriteStatus(w io.Writer, _ time.Time) {
	if len(s.Listen) > 0 {
		fmt.Fprintf(w, "lookup    %s; %d of %d connections, %d look-ups; tables: %s\n", strings.Join(s.Listen, ", "), s.Connections, s.Max, s.Lookups, strings.Join(s.Maps, ", "))
	}
}

// TableStatuses are how the tables are.
type TableStatuses []TableStatus

// WriteStatus implements adminapi.Status.
func (s TableStatuses) WriteStatus(w io.Writer, now time.Time) {
	for _, t := range s {
		for _, f := range t.Sources {
			fmt.Fprintf(w, "table     %s: %s: %d rules, read %s ago\n", t.Name, f.Source, f.Rules, adminapi.Ago(now, f.Loaded))
			if f.Fault != "" {
				fmt.Fprintf(w, "          EDIT NOT TAKEN %s ago, the rules above stay in force: %s\n", adminapi.Ago(now, f.FaultAt), f.Fault)
			}
		}
	}
}

// Calls are what the door offers the administrator.
func (s *Server) Calls() adminapi.Calls {
	return adminapi.Calls{
		"GET /v1/lookup/{table}": adminapi.Answer(func(r *http.Request) (any, error) {
			name := r.PathValue("table")
			a, err := s.Explain(r.Context(), name, r.URL.Query().Get("key"))
			if errors.Is(err, ErrUnknown) {
				return nil, adminapi.NotFound(fmt.Errorf("there is no table %q", name))
			}
			return a, adminapi.Unavailable(err)
		}),
	}
}

// Admin makes the door's calls at a running daemon.
type Admin struct{ *adminapi.Client }

// Lookup asks a table.
func (c Admin) Lookup(ctx context.Context, table, key string) (out Answer, err error) {
	err = c.Call(ctx, http.MethodGet, "/v1/lookup/"+url.PathEscape(table)+"?key="+url.QueryEscape(key), nil, &out)
	return out, err
}
