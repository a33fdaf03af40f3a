package app

import (
	"strings"
	"testing"
	"time"

	"postern/docs/tutorial/tld"
)

// The lines of docs/new-check.md make a check that chains can name, that is
// started, stopped, shown and called.
func TestTheTutorialsCheck(t *testing.T) {
	var cfg struct{ TLD tld.Config }
	cfg.TLD = tld.DefaultConfig()
	b := &builder{g: new(generation), prev: new(generation)}
	add(b, cfg.TLD.Step, func(prev *tld.Check) (*tld.Check, error) {
		return tld.New(cfg.TLD)
	})
	if b.err != nil || len(b.g.units) != 1 {
		t.Fatalf("%d checks, %v", len(b.g.units), b.err)
	}
	u := b.g.units[0]
	u.check.Start()
	u.check.Stop()
	step := steps(b.g.units)["tld"]
	if any(step.Check) != any(u.check) || step.Timeout != cfg.TLD.Timeout {
		t.Errorf("step %+v", step)
	}
	var text strings.Builder
	u.status().WriteStatus(&text, time.Now())
	if text.String() != "tld       0 refused\n" || u.calls["GET /v1/tld"] == nil {
		t.Errorf("%q, calls %v", text.String(), u.calls)
	}
}
