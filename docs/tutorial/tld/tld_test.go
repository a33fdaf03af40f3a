package tld

import (
	"fmt"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/internal/conf"
	"postern/pipeline"
	"postern/policy"
)

// The page shows code that is compiled and run: here, and in the tests of the
// packages in which a check has its place.
func TestThePageShowsTheCode(t *testing.T) {
	page, err := os.ReadFile("../../new-check.md")
	if err != nil {
		t.Fatal(err)
	}
	files := []string{"tld.go", "../../../config/tutorial_test.go", "../../../app/tutorial_test.go", "../../../cmd/postern/tutorial_test.go"}
	used := make(map[string]int)
	for _, block := range strings.Split(string(page), "```go\n")[1:] {
		block, _, _ = strings.Cut(block, "```")
		found := slices.ContainsFunc(files, func(name string) bool {
			code, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(code), "\n"+block) {
				return false
			}
			used[name]++
			return true
		})
		if !found {
			t.Errorf("in none of %v:\n%s", files, block)
		}
	}
	for _, name := range files {
		if used[name] == 0 {
			t.Errorf("nothing of %s is on the page", name)
		}
	}
}

func TestCheck(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Refuse = []string{"zip"}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.Start()
	defer c.Stop()
	chain := pipeline.DefaultChain()
	chain.Checks = []string{"tld"}
	p, err := pipeline.New(pipeline.Options{
		Chains: map[string]pipeline.ChainConfig{"inbound": chain}, Default: "inbound",
		Steps: map[string]pipeline.Step{"tld": {Check: c, Step: cfg.Step}},
		Log:   zap.NewNop(), Metrics: pipeline.NewMetrics(prometheus.NewRegistry()),
	})
	if err != nil {
		t.Fatal(err)
	}
	for domain, want := range map[string]policy.Action{"example.zip": policy.Reject, "zip": policy.Reject, "example.org": policy.Continue, "zip.example": policy.Continue, "": policy.Continue} {
		req := &policy.Request{Stage: policy.StageRcpt, Sender: policy.Address{Domain: domain}}
		var d policy.Decision
		p.Decide(t.Context(), req, &d)
		if d.Verdict.Action != want {
			t.Errorf("%q: %v, want %v", domain, d.Verdict.Action, want)
		}
	}
	w := httptest.NewRecorder()
	c.Calls()["GET /v1/tld"].ServeHTTP(w, httptest.NewRequest("GET", "/v1/tld", nil))
	if got := strings.TrimSpace(w.Body.String()); got != `{"refused":2}` {
		t.Error(got)
	}
	var text strings.Builder
	c.Status().WriteStatus(&text, time.Now())
	if text.String() != "tld       2 refused\n" {
		t.Errorf("%q", &text)
	}
}

func TestFaults(t *testing.T) {
	c := DefaultConfig()
	c.Refuse, c.Reply = []string{"zip", "co.uk"}, "250 fine"
	var fs conf.Faults
	c.Validate("tld", &fs)
	if text := fmt.Sprint(fs.Err()); len(fs) != 2 || !strings.Contains(text, `tld.refuse[1]: "co.uk" is no top-level domain`) {
		t.Error(text)
	}
}
