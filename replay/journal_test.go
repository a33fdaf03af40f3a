package replay

import (
	"context"
	"errors"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"go.uber.org/zap"

	"postern/internal/mailaddr"
	"postern/internal/reference"
	"postern/journal"
	"postern/policy"
)

// kept writes a journal.
func kept(t *testing.T, write func(j *journal.Journal)) *journal.Reader {
	t.Helper()
	dir := t.TempDir()
	cfg := journal.DefaultConfig()
	cfg.Keep = journal.KeepAll
	j := journal.New(cfg, journal.Options{Dir: dir, References: reference.NewSource(1), Log: zap.NewNop()})
	j.Start()
	write(j)
	j.Stop(t.Context())
	r, err := journal.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func decision(action policy.Action, check, reason string, took time.Duration) *policy.Decision {
	d := &policy.Decision{Chain: "inbound", Took: took, Steps: []policy.Step{{Check: check, Verdict: policy.Verdict{Action: action, Reason: reason}}}}
	if action != policy.Continue {
		d.Check, d.Verdict = check, d.Steps[0].Verdict
	}
	return d
}

func TestPast(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	at := func(s int) time.Time { return now.Add(time.Duration(s-600) * time.Second) }
	request := func(s int, sender string) *policy.Request {
		q := item(0, sender, nil).Request
		q.Time, q.Door = at(s), "policy"
		return q
	}
	reader := kept(t, func(j *journal.Journal) {
		j.Answer(journal.Answer{Time: at(-100), Name: "old.example", Type: "A", Records: []string{"192.0.2.9"}})
		j.Record(request(0, "before@example.org"), decision(policy.Continue, "rbl", "", 0))
		// The answer comes while the request waits for it.
		j.Answer(journal.Answer{Time: at(14), Name: "example.org", Type: "TXT", Records: []string{"v=spf1 -all"}})
		j.Record(request(10, "a@example.org"), decision(policy.Reject, "spf", "spf-fail", 4*time.Second))
		listed := request(20, "b@example.net")
		listed.Facts.Listings = []policy.Listing{{List: "bl.example", What: "192.0.2.1", Answer: "127.0.0.2 127.0.0.4"}, {List: "dbl.example", What: "example.net", Answer: "127.0.1.2"}}
		listed.Facts.SPF = policy.SPF{Result: "softfail", Domain: "example.net"}
		j.Record(listed, decision(policy.Defer, "verify", "verify-unknown", 0))
		content := request(25, "c@example.org")
		content.Door, content.Stage = "milter", policy.StageEndOfMessage
		j.Record(content, decision(policy.Reject, "headers", "x", 0))
		j.Record(request(30, "d@example.org"), decision(policy.Continue, "verify", "verify-temporary", 0))
		j.Record(request(60, "after@example.org"), decision(policy.Continue, "rbl", "", 0))
	})
	w := NewWorld()
	skipped := map[string]int{}
	past := &Past{Reader: reader, Since: at(5), Until: at(50), World: w, Skipped: func(why string) { skipped[why]++ }}
	var got []string
	err := past.Each(t.Context(), func(it *Item) error {
		got = append(got, it.Request.Sender.Raw+" "+it.Then.What+" "+it.Then.Check)
		switch it.Request.Sender.Local {
		case "a":
			if r := w.Answer(t.Context(), "example.org", "TXT"); !reflect.DeepEqual(r.Records, []string{"v=spf1 -all"}) {
				t.Errorf("%+v", r)
			}
			if r := w.Answer(t.Context(), "old.example", "A"); len(r.Records) != 1 {
				t.Errorf("an answer from before the first request is missing: %+v", r)
			}
			if r := w.Answer(t.Context(), "1.2.0.192.bl.example", "A"); r.Records != nil {
				t.Errorf("%+v before it was known", r)
			}
		case "b":
			if r := w.Answer(t.Context(), "1.2.0.192.bl.example", "A"); !reflect.DeepEqual(r.Records, []string{"127.0.0.2", "127.0.0.4"}) {
				t.Errorf("%+v", r)
			}
			if r := w.Answer(t.Context(), "example.net", "TXT"); !reflect.DeepEqual(r.Records, []string{"v=spf1 ~all"}) {
				t.Errorf("%+v", r)
			}
			if said, _ := w.Recipient(it.Request.Recipient); said != "unknown" {
				t.Error(said)
			}
		case "d":
			if said, _ := w.Recipient(it.Request.Recipient); said != "temporary" {
				t.Error(said)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"a@example.org refused spf", "b@example.net deferred verify", "d@example.org accepted "}; !reflect.DeepEqual(got, want) {
		t.Errorf("%q", got)
	}
	if !reflect.DeepEqual(skipped, map[string]int{noContent: 1}) {
		t.Error(skipped)
	}
	// Without bounds all of it comes, and an error ends it.
	n := 0
	stop := errors.New("enough")
	err = (&Past{Reader: reader, World: NewWorld(), Skipped: func(string) {}}).Each(t.Context(), func(*Item) error {
		if n++; n == 4 {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) || n != 4 {
		t.Error(n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := (&Past{Reader: reader, World: NewWorld()}).Each(ctx, func(*Item) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// What was said of SPF is not held against a record that was read.
func TestRecallKeepsWhatIsRecorded(t *testing.T) {
	w := NewWorld()
	q := &policy.Request{Client: policy.Client{Addr: netip.MustParseAddr("192.0.2.1")}, Sender: mailaddr.Parse("a@example.org"), Recipient: mailaddr.Parse("b@example.com")}
	r := &journal.Record{Facts: policy.Facts{SPF: policy.SPF{Result: "temperror", Domain: "example.org"}}, Decision: decision(policy.Continue, "verify", "verify-known", 0)}
	w.Recall(q, r)
	if got := w.Answer(t.Context(), "example.org", "TXT"); got.Failure != "servfail" {
		t.Errorf("%+v", got)
	}
	r.Facts.SPF.Result = "pass"
	w.Recall(q, r)
	if got := w.Answer(t.Context(), "example.org", "TXT"); got.Failure != "servfail" {
		t.Errorf("%+v", got)
	}
	if said, how := w.Recipient(q.Recipient); said != "known" || how != "as recorded" {
		t.Error(said, how)
	}
}
