package main

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"postern/journal"
	"postern/policy"
)

func momentOf(t *testing.T, at time.Time, text string) *moment {
	t.Helper()
	p := expfmt.NewTextParser(model.UTF8Validation)
	m, err := p.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return &moment{at: at, metrics: m, status: "postern x\npolicy    here\n          more\nlist      not this\ndns       there\n"}
}

func TestTop(t *testing.T) {
	start := time.Date(2026, 11, 27, 10, 0, 0, 0, time.UTC)
	before := momentOf(t, start, `# TYPE postern_decisions_total counter
postern_decisions_total{action="reject"} 10
# TYPE postern_check_verdicts_total counter
postern_check_verdicts_total{check="rbl",outcome="ran",action="reject",reason="x"} 10
# TYPE postern_check_seconds histogram
postern_check_seconds_bucket{check="rbl",le="+Inf"} 10
postern_check_seconds_sum{check="rbl"} 1
postern_check_seconds_count{check="rbl"} 10
`)
	now := momentOf(t, start.Add(2*time.Second), `# TYPE postern_decisions_total counter
postern_decisions_total{action="reject"} 14
postern_decisions_total{action="continue"} 6
# TYPE postern_check_verdicts_total counter
postern_check_verdicts_total{check="rbl",outcome="ran",action="reject",reason="x"} 12
postern_check_verdicts_total{check="rbl",outcome="ran",action="continue",reason=""} 4
postern_check_verdicts_total{check="rbl",outcome="timeout",action="continue",reason=""} 2
postern_check_verdicts_total{check="rbl",outcome="shadow",action="reject",reason=""} 2
postern_check_verdicts_total{check="greylist",outcome="hint",action="defer-if-permit",reason=""} 2
# TYPE postern_check_seconds histogram
postern_check_seconds_bucket{check="rbl",le="+Inf"} 14
postern_check_seconds_sum{check="rbl"} 1.02
postern_check_seconds_count{check="rbl"} 14
# TYPE postern_rbl_queries_total counter
postern_rbl_queries_total{list="slow.example"} 2
postern_rbl_queries_total{list="fast.example"} 20
# TYPE postern_rbl_failures_total counter
postern_rbl_failures_total{list="slow.example",class="timeout"} 1
postern_rbl_failures_total{list="slow.example",class="dns"} 1
# TYPE postern_rbl_query_seconds histogram
postern_rbl_query_seconds_bucket{list="slow.example",le="+Inf"} 2
postern_rbl_query_seconds_sum{list="slow.example"} 1
postern_rbl_query_seconds_count{list="slow.example"} 2
`)
	now.recent = []*journal.Record{{
		Time: start, Client: "192.0.2.1", Sender: "", Recipient: "b\x1b[2J@example.com",
		Decision: &policy.Decision{Reference: "ABCDE-FGHJK", Verdict: policy.Verdict{Action: policy.Reject, Reason: "rbl-listed", Reply: policy.Reply{Code: 554, Enhanced: "5.7.1", Text: "no"}}},
	}}
	var b strings.Builder
	writeView(&b, viewOf(before, now))
	const want = `2026-11-27 10:00:02  5.0 decisions/s: continue 3.0, reject 2.0

   /S  REFUSED/S  FAILED/S    MS  CHECK
  5.0        1.0       1.0  5.00  rbl
  1.0        1.0       0.0  0.00  greylist

    /S  HITS/S  FAILED/S      MS  DNS LIST
   1.0     0.0       1.0  500.00  slow.example
  10.0     0.0       0.0    0.00  fast.example

policy    here
dns       there

10:00:00  ABCDE-FGHJK  192.0.2.1  <> -> b?[2J@example.com  reject (rbl-listed): 554 5.7.1 no
`
	if got := b.String(); got != want {
		t.Errorf("%s", got)
	}
}
