package dkim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/policy"
)

// Trial is what would become of a message.
type Trial struct {
	// Whose says why the message is ours to sign, or that it is not.
	Whose string `json:"whose"`
	// Reason and Detail are those of the log.
	Reason string `json:"reason,omitempty"`
	Detail string `json:"detail,omitempty"`
	// Fields are the signatures, as they would stand in the message.
	Fields []string `json:"fields,omitempty"`
}

// none answers no question: a trial takes all records for good.
type none struct{}

// LookupTXT implements [Resolver].
func (none) LookupTXT(context.Context, string) ([]string, error) {
	return nil, errors.New("nobody is asked")
}

// Forget implements [Resolver].
func (none) Forget(string) {}

// Try signs a message, with LF or CRLF line ends, as the daemon would if req
// were its envelope, no rule changed it and all records were good. cfg has been
// validated.
func Try(ctx context.Context, cfg Config, req *policy.Request, message []byte) (Trial, error) {
	cfg.Mode, cfg.CheckDNS = policy.Enforce, false
	c, err := New(cfg, Options{Resolver: none{}, Log: zap.NewNop(), Registry: prometheus.NewRegistry()}, nil)
	if err != nil {
		return Trial{}, err
	}
	own := *req
	own.DryRun = true
	in, ok := c.Inspect(&own, nil).(*inspection)
	if !ok {
		return Trial{Whose: "not ours: no login, no client of our networks, no chain of ours"}, nil
	}
	text := bytes.ReplaceAll(message, []byte("\r\n"), []byte("\n"))
	header, body, _ := bytes.Cut(text, []byte("\n\n"))
	fields, err := splitHeader(string(header))
	if err != nil {
		return Trial{}, err
	}
	for _, f := range fields {
		in.Header(f)
	}
	in.EndOfHeaders()
	out := Trial{Whose: map[origin]string{
		ours: "ours: a login, a client of our networks, or a chain of ours", local: "ours: made on this host, or handed in by one of us", foreign: "not ours: handed in by this host, and come from another",
	}[in.from]}
	in.Body(bytes.ReplaceAll(body, []byte("\n"), []byte("\r\n")))
	j, err := in.End(ctx)
	if err == nil && in.from != foreign {
		j, err = in.Finish(ctx, nil)
	}
	if err != nil {
		return out, err
	}
	out.Reason, out.Detail = j.Verdict.Reason, j.Verdict.Detail
	for _, e := range j.Edits {
		out.Fields = append(out.Fields, e.Name+":"+e.Value)
	}
	return out, nil
}

// splitHeader takes a header apart, lines joined by LF.
func splitHeader(header string) (fields []policy.Field, err error) {
	for i, line := range strings.Split(strings.TrimSuffix(header, "\n"), "\n") {
		if line != "" && (line[0] == ' ' || line[0] == '\t') && len(fields) > 0 {
			fields[len(fields)-1].Value += "\n" + line
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if name = strings.TrimRight(name, " \t"); !ok || !policy.UsableName(name) {
			return nil, fmt.Errorf("line %d is no header field: %.60q", i+1, line)
		}
		fields = append(fields, policy.Field{Name: name, Value: value})
	}
	return fields, nil
}
