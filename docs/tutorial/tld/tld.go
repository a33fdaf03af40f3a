// Package tld is the check of docs/new-check.md: it refuses senders by their
// top-level domain. It is an example, and in no chain.
package tld

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"postern/internal/adminapi"
	"postern/internal/conf"
	"postern/policy"
)

// Config is the [tld] section.
type Config struct {
	conf.Step
	// Refuse are top-level domains, such as "zip". Default none.
	Refuse []string `toml:"refuse"`
	// Reply is what a refused client reads. Placeholders: {domain}. Default
	// "550 5.7.1 Mail from {domain} is not accepted".
	Reply string `toml:"reply"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{Step: conf.Step{Timeout: conf.Duration(time.Second)}, Reply: "550 5.7.1 Mail from {domain} is not accepted"}
}

var reply = policy.Reply{Code: 550, Enhanced: "5.7.1"}

// Validate reports what is wrong with the values; prefix is the section's key.
func (c *Config) Validate(prefix string, fs *conf.Faults) {
	for i, d := range c.Refuse {
		if d == "" || strings.Contains(d, ".") {
			fs.Keyf(fmt.Sprintf("%s.refuse[%d]", prefix, i), "%q is no top-level domain", d)
		}
	}
	if _, err := policy.ParseTemplate(c.Reply, reply, "domain"); err != nil {
		fs.Keyf(prefix+".reply", "%v", err)
	}
}

// Check is a [policy.Check].
type Check struct {
	cfg     Config
	reply   *policy.Template
	refused atomic.Uint64
}

// New returns the check; cfg has been validated.
func New(cfg Config) (*Check, error) {
	t, err := policy.ParseTemplate(cfg.Reply, reply, "domain")
	return &Check{cfg: cfg, reply: t}, err
}

// Start and Stop: it does nothing by itself.
func (*Check) Start() {}

// Stop undoes Start.
func (*Check) Stop() {}

// Name implements [policy.Check].
func (*Check) Name() string { return "tld" }

// Traits are those of every such check: the sender is known from MAIL on.
var Traits = policy.Traits{Stages: policy.Stages(policy.StageMail, policy.StageRcpt, policy.StageData)}

// Traits implements [policy.Check].
func (*Check) Traits() policy.Traits { return Traits }

// Idle implements [policy.Idler].
func (c *Check) Idle() bool { return len(c.cfg.Refuse) == 0 }

// Evaluate implements [policy.Check].
func (c *Check) Evaluate(_ context.Context, req *policy.Request) (policy.Verdict, error) {
	domain := req.Sender.Domain
	if !slices.Contains(c.cfg.Refuse, domain[strings.LastIndexByte(domain, '.')+1:]) {
		return policy.Verdict{}, nil // no objection
	}
	if !req.DryRun { // a question of `postern explain` changes nothing
		c.refused.Add(1)
	}
	return policy.Verdict{
		Action: policy.Reject, Reason: "tld-refused", Detail: domain,
		Reply: c.reply.Expand(func(string) string { return domain }),
	}, nil
}

// Status is what `postern status` shows of the check.
type Status struct {
	Refused uint64 `json:"refused"`
}

// Status returns the counts.
func (c *Check) Status() Status { return Status{c.refused.Load()} }

// WriteStatus implements adminapi.Status.
func (s Status) WriteStatus(w io.Writer, _ time.Time) {
	fmt.Fprintf(w, "tld       %d refused\n", s.Refused)
}

// Calls are what the check offers the administrator.
func (c *Check) Calls() adminapi.Calls {
	return adminapi.Calls{
		"GET /v1/tld": adminapi.Answer(func(*http.Request) (any, error) { return c.Status(), nil }),
	}
}

// Admin makes the check's calls at a running daemon.
type Admin struct{ *adminapi.Client }

// Refused returns how many senders were refused.
func (a Admin) Refused(ctx context.Context) (out Status, err error) {
	err = a.Call(ctx, http.MethodGet, "/v1/tld", nil, &out)
	return out, err
}
