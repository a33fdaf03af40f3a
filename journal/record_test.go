package journal

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"postern/internal/mailaddr"
	"postern/policy"
)

// set gives every field of a struct a value of its own.
func set(v reflect.Value, n *int) {
	switch v.Kind() {
	case reflect.Struct:
		for _, field := range v.Fields() {
			if field.CanSet() {
				set(field, n)
			}
		}
	case reflect.String:
		*n++
		v.SetString("text" + string(rune('a'+*n%26)) + string(rune('a'+*n/26)))
	case reflect.Int, reflect.Int64:
		*n++
		v.SetInt(int64(*n))
	case reflect.Uint16, reflect.Uint8:
		*n++
		v.SetUint(uint64(*n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			set(v.Index(i), n)
		}
	default:
	}
}

// What the door handed in comes back whole. A field that is added to a request is
// to be added to the record.
func TestRequestComesBack(t *testing.T) {
	var want policy.Request
	n := 0
	set(reflect.ValueOf(&want).Elem(), &n)
	want.Time, want.Stage = time.Unix(1e9, 12345).UTC(), policy.StageRcpt
	want.Client.Addr, want.ServerAddr = netip.MustParseAddr("2001:db8::7"), netip.MustParseAddr("192.0.2.1")
	want.Sender, want.Recipient = mailaddr.Parse("Ann@Example.ORG"), mailaddr.Parse("bob@[192.0.2.7]")
	facts := want.Facts
	var r Record
	r.fill(&want, &policy.Decision{})
	text, err := json.Marshal(&r)
	if err != nil {
		t.Fatal(err)
	}
	var back Record
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	// What the pipeline and the checks add is not the door's.
	want.Facts, want.JudgedBy, want.Shadow, want.DryRun, want.Probe = policy.Facts{}, "", false, false, nil
	if got := back.Request(); !reflect.DeepEqual(got, &want) {
		t.Errorf("came back as\n%+v, want\n%+v", got, &want)
	}
	if !reflect.DeepEqual(back.Facts, facts) {
		t.Errorf("facts came back as\n%+v, want\n%+v", back.Facts, facts)
	}
	empty := policy.Request{Time: time.Unix(1e9, 0)}
	r.fill(&empty, &policy.Decision{})
	if text, err = json.Marshal(&r); err != nil {
		t.Fatal(err)
	}
	back = Record{}
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	back.Time = back.Time.Local()
	if got := back.Request(); !reflect.DeepEqual(got, &empty) {
		t.Errorf("an empty request came back as %+v", got)
	}
}

func TestAnswerComesBack(t *testing.T) {
	at := time.Unix(1e9, 5).UTC()
	for _, want := range []Answer{
		{Time: at, Name: "example.org", Type: "MX", Records: []string{"10 mail.example.org", "20 "}, TTL: time.Minute},
		{Time: at, Name: "example.org", Type: "TXT", Records: []string{"v=spf1 \"é\" \\ -all", ""}},
		{Time: at, Name: "example.org", Type: "TXT", Records: []string{"octets \xff\x00\x80", "é"}},
		{Time: at, Name: "example.org", Type: "A", Failure: "timeout"},
		{Time: at, Name: "example.org", Type: "A"},
	} {
		text, err := json.Marshal(&want)
		if err != nil {
			t.Fatal(err)
		}
		var got Answer
		if err := json.Unmarshal(text, &got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s came back as %+v %v, want %+v", text, got, err, want)
		}
	}
}

// With keep = "all" decisions and answers come back together, in the order of
// their time.
func TestScanOfBothKinds(t *testing.T) {
	dir := t.TempDir()
	cfg := config()
	cfg.Keep = KeepAll
	j, _ := onDisk(t, cfg, dir)
	now := time.Now()
	j.Record(&policy.Request{Time: now, Stage: policy.StageRcpt, Sender: policy.Address{Raw: "a@example.org"}}, &policy.Decision{Chain: "inbound"})
	j.Answer(Answer{Time: now.Add(-time.Second), Name: "example.org", Type: "A", Records: []string{"192.0.2.1"}})
	j.Answer(Answer{Time: now.Add(time.Second), Name: "example.net", Type: "A"})
	j.Stop(t.Context())
	if got, _ := what(t, dir); !reflect.DeepEqual(got, []string{"example.org", "a@example.org", "example.net"}) {
		t.Error(got)
	}
	r, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Search(t.Context(), &Filter{Verdict: "continue"}, func(r *Record) bool {
		if r.Decision.Reference == "" || r.Decision.Chain != "inbound" || r.Request().Sender.Domain != "example.org" {
			t.Errorf("found %+v", r)
		}
		found, err := j.Find(t.Context(), r.Decision.Reference)
		if err != nil || found == nil {
			t.Errorf("not found by its reference: %v", err)
		}
		return true
	}); err != nil {
		t.Error(err)
	}
}
