package provider

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"go.uber.org/zap"

	"postern/internal/adminapi"
)

// Statuses are how the lists are.
type Statuses []Status

// WriteStatus implements adminapi.Status.
func (s Statuses) WriteStatus(w io.Writer, now time.Time) {
	for i := range s {
		s[i].Write(w, now, "provider  ")
	}
}

// Write writes how the list is, for people, with indent in front of each line.
func (st *Status) Write(w io.Writer, now time.Time, indent string) {
	fmt.Fprintf(w, "%s%s: ", indent, st.Name)
	switch {
	case !st.Ready:
		fmt.Fprint(w, "NO LIST YET")
	default:
		fmt.Fprintf(w, "%d networks (%d IPv4, %d IPv6)", st.Networks, st.IPv4, st.IPv6)
	}
	if !st.Checked.IsZero() {
		fmt.Fprintf(w, ", read %s ago", adminapi.Ago(now, st.Checked))
	}
	if st.Stale {
		fmt.Fprint(w, ", STALE")
	}
	if !st.Changed.IsZero() {
		fmt.Fprintf(w, ", changed %s ago", adminapi.Ago(now, st.Changed))
	}
	if !st.Next.IsZero() {
		fmt.Fprintf(w, ", next %s", adminapi.Until(now, st.Next))
	}
	fmt.Fprintln(w)
	if r := st.Refused; r != nil {
		fmt.Fprintf(w, "%s  UPDATE REFUSED %s ago: %s (+%d -%d networks); `postern provider diff %s`, then accept %s %s\n",
			indent, adminapi.Ago(now, r.Time), strings.Join(r.Reasons, "; "), r.Added, r.Removed, st.Name, st.Name, r.ID)
		if st.Checked.IsZero() { // no reading was ever taken, most likely for this
			WriteProblems(w, r.Problems, indent+"  ")
		}
	}
	if st.Error != "" {
		fmt.Fprintf(w, "%s  last error %s ago, %d in a row: %s\n", indent, adminapi.Ago(now, st.ErrorAt), st.Failures, adminapi.Printable(st.Error))
	}
	if st.FileFault != "" {
		fmt.Fprintf(w, "%s  FILE NOT TAKEN %s ago: %s\n", indent, adminapi.Ago(now, st.FileFaultAt), adminapi.Printable(st.FileFault))
	}
	if st.ExportError != "" {
		fmt.Fprintf(w, "%s  EXPORT FAILED: %s\n", indent, adminapi.Printable(st.ExportError))
	}
}

// WriteProblems writes what could not be turned into networks, for people.
func WriteProblems(w io.Writer, problems []Problem, indent string) {
	for _, p := range problems {
		fmt.Fprintf(w, "%s%s: %s\n", indent, p.Kind, adminapi.Printable(p.String()))
	}
}

// Difference is what accepting a refused update of a list would change.
type Difference struct {
	Diff
	Pending *Pending `json:"pending,omitempty"`
	History []Change `json:"history,omitempty"`
}

// Calls are what the check offers the administrator.
func (s *Set) Calls() adminapi.Calls {
	return adminapi.Calls{
		"GET /v1/providers": adminapi.Answer(func(*http.Request) (any, error) { return s.Status(), nil }),
		"GET /v1/providers/whois/{addr}": adminapi.Answer(func(r *http.Request) (any, error) {
			addr, err := adminapi.Addr(r, "addr")
			if err != nil {
				return nil, err
			}
			return s.Whois(addr), nil
		}),
		"GET /v1/providers/list/{name}": adminapi.Answer(func(r *http.Request) (any, error) { return s.Show(r.PathValue("name")) }),
		"GET /v1/providers/list/{name}/diff": adminapi.Answer(func(r *http.Request) (any, error) {
			name := r.PathValue("name")
			diff, pending, err := s.Pending(name)
			if err != nil {
				return nil, err
			}
			history, err := s.History(name)
			return Difference{diff, pending, history}, err
		}),
		"GET /v1/providers/list/{name}/export": adminapi.Text(func(r *http.Request) (string, error) {
			var b strings.Builder
			err := s.Export(&b, r.PathValue("name"), r.URL.Query().Get("result"))
			return b.String(), err
		}),
		"POST /v1/providers/list/{name}/refresh": adminapi.Answer(func(r *http.Request) (any, error) {
			return s.Refresh(r.Context(), r.PathValue("name"), r.URL.Query().Get("dry") == "true")
		}),
		"POST /v1/providers/list/{name}/accept": adminapi.Answer(func(r *http.Request) (any, error) {
			rep, err := s.Accept(r.Context(), r.PathValue("name"), r.URL.Query().Get("id"))
			if err == nil {
				s.log.Info("a refused update was accepted on request", zap.String("list", r.PathValue("name")), zap.String("id", rep.ID))
			}
			return rep, err
		}),
	}
}

// Admin makes the check's calls at a running daemon.
type Admin struct{ *adminapi.Client }

func listPath(name, more string) string { return "/v1/providers/list/" + url.PathEscape(name) + more }

// Lists returns the lists.
func (c Admin) Lists(ctx context.Context) (out []Status, err error) {
	err = c.Call(ctx, http.MethodGet, "/v1/providers", nil, &out)
	return out, err
}

// Show returns all that is known of a list.
func (c Admin) Show(ctx context.Context, name string) (out Shown, err error) {
	err = c.Call(ctx, http.MethodGet, listPath(name, ""), nil, &out)
	return out, err
}

// Refresh reads the records of a list now; dry changes nothing.
func (c Admin) Refresh(ctx context.Context, name string, dry bool) (out Report, err error) {
	more := "/refresh"
	if dry {
		more += "?dry=true"
	}
	err = c.Call(ctx, http.MethodPost, listPath(name, more), nil, &out)
	return out, err
}

// Diff returns what accepting the refused update would change.
func (c Admin) Diff(ctx context.Context, name string) (out Difference, err error) {
	err = c.Call(ctx, http.MethodGet, listPath(name, "/diff"), nil, &out)
	return out, err
}

// Accept takes the refused update with that id.
func (c Admin) Accept(ctx context.Context, name, id string) (out Report, err error) {
	err = c.Call(ctx, http.MethodPost, listPath(name, "/accept?id="+url.QueryEscape(id)), nil, &out)
	return out, err
}

// Export returns a list as a cidr table.
func (c Admin) Export(ctx context.Context, name, result string) (string, error) {
	return c.Text(ctx, listPath(name, "/export?result="+url.QueryEscape(result)))
}

// Whois returns the lists that hold an address.
func (c Admin) Whois(ctx context.Context, addr netip.Addr) (out []Match, err error) {
	err = c.Call(ctx, http.MethodGet, "/v1/providers/whois/"+url.PathEscape(addr.String()), nil, &out)
	return out, err
}
