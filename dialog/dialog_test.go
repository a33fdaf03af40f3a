package dialog

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/policy"
)

var (
	client = policy.Client{Addr: netip.MustParseAddr("192.0.2.7"), Port: 40211}
	server = netip.MustParseAddr("192.0.2.10")
	now    = time.Unix(1e9, 0)
)

// request is a policy request about the session of client.
func request(instance string) *policy.Request {
	return &policy.Request{Time: now, Stage: policy.StageRcpt, Client: client, ServerAddr: server, Instance: instance}
}

func adding(names ...string) *policy.Decision {
	d := &policy.Decision{}
	for _, n := range names {
		d.Headers = append(d.Headers, policy.Header{Name: n, Value: "x"})
	}
	return d
}

func names(headers []policy.Header) string {
	var out []string
	for _, h := range headers {
		out = append(out, h.Name)
	}
	return strings.Join(out, " ")
}

func TestWhoHandsOutAHeader(t *testing.T) {
	table := New(10)
	if table.Learn(request("1"), adding("X-Greylist")) {
		t.Error("left to a milter that is not there")
	}
	s := table.Open(client, server)
	for name, edit := range map[string]func(*policy.Request){
		"another port":     func(r *policy.Request) { r.Client.Port++ },
		"another client":   func(r *policy.Request) { r.Client.Addr = server },
		"unknown port":     func(r *policy.Request) { r.Client.Port = 0 },
		"unknown client":   func(r *policy.Request) { r.Client.Addr = netip.Addr{} },
		"another server":   func(r *policy.Request) { r.ServerAddr = client.Addr },
		"nothing the same": func(r *policy.Request) { *r = policy.Request{Time: now} },
	} {
		r := request("1")
		edit(r)
		if table.Learn(r, adding("X-Greylist")) {
			t.Errorf("%s: left to the milter", name)
		}
	}
	if !table.Learn(request("1"), adding("X-Greylist")) || !table.Learn(request("1"), adding("x-greylist", "Received-SPF")) {
		t.Error("not left to the milter")
	}
	noServer := request("1")
	noServer.ServerAddr = netip.Addr{}
	if !table.Learn(noServer, adding("X-Other")) {
		t.Error("a request that does not know the server's address")
	}
	if _, h := s.Message("", now); names(h) != "X-Greylist Received-SPF X-Other" {
		t.Errorf("header fields %q", names(h))
	}
	s.Close()
	if table.Learn(request("1"), adding("X-Greylist")) || table.Len() != 0 {
		t.Error("left to a milter session that has ended")
	}
}

func TestWatched(t *testing.T) {
	var none *Table
	table := New(10)
	type state struct{ open, content bool }
	watched := func(table *Table, c policy.Client, server netip.Addr) state {
		open, content := table.Watched(&c, server)
		return state{open, content}
	}
	if watched(none, client, server) != (state{}) || watched(table, client, server) != (state{}) {
		t.Error("watched without a session")
	}
	s := table.Open(client, server)
	if got := watched(table, client, server); got != (state{open: true}) {
		t.Errorf("a session that is not shown the content: %+v", got)
	}
	s.SeesContent()
	(*Session)(nil).SeesContent()
	other, unknown := client, client
	other.Port++
	unknown.Port = 0
	for _, tt := range []struct {
		client policy.Client
		server netip.Addr
		want   bool
	}{
		{client, server, true}, {client, netip.Addr{}, true}, {client, client.Addr, false}, {other, server, false}, {unknown, server, false},
	} {
		if got := watched(table, tt.client, tt.server); got != (state{tt.want, tt.want}) {
			t.Errorf("%+v at %v: %+v", tt.client, tt.server, got)
		}
	}
	if again := table.Open(client, server); again == nil || watched(table, client, server) != (state{open: true}) {
		t.Error("the next session of the same address and port is shown what the last one was")
	}
}

func TestOneMessageAtATime(t *testing.T) {
	table := New(10)
	s := table.Open(client, server)
	first := request("1")
	first.Facts.SPF.Result = "pass"
	table.Learn(first, adding("A"))
	table.Learn(request("2"), adding("B")) // the end of the first was not told
	if f, h := s.Message("", now); names(h) != "B" || f.SPF.Result != "" {
		t.Errorf("second message: %q %+v", names(h), f)
	}
	s.End()
	if f, h := s.Message("", now); h != nil || f.SPF.Result != "" {
		t.Errorf("after the end: %q %+v", names(h), f)
	}
	mail := request("3")
	mail.Stage = policy.StageMail
	table.Learn(mail, adding("M"))
	s.Begin()
	if _, h := s.Message("", now); names(h) != "M" {
		t.Errorf("what was learned at MAIL: %q", names(h))
	}
	table.Learn(request("3"), adding("R"))
	s.Begin() // the message was given up
	if _, h := s.Message("", now); h != nil {
		t.Errorf("of a message that was given up: %q", names(h))
	}
	data := request("3")
	data.Stage, data.QueueID = policy.StageData, "4abc"
	table.Learn(data, adding("C"))
	if _, h := s.Message("4xyz", now); h != nil {
		t.Errorf("another queue id: %q", names(h))
	}
	if _, h := s.Message("4abc", now.Add(maxAge+time.Second)); h != nil {
		t.Errorf("much later: %q", names(h))
	}
	if _, h := s.Message("4abc", now); names(h) != "C" {
		t.Errorf("the same queue id: %q", names(h))
	}
	late := request("3") // instance numbers come again
	late.Time = now.Add(2 * maxAge)
	table.Learn(late, adding("D"))
	if _, h := s.Message("", late.Time); names(h) != "D" {
		t.Errorf("the instance came again: %q", names(h))
	}
}

func TestFactsAreMerged(t *testing.T) {
	table := New(10)
	s := table.Open(client, server)
	a := request("1")
	a.Facts = policy.Facts{
		SPF: policy.SPF{Result: "fail", Domain: "example.org"}, Provider: "p", RBLScore: 3,
		Listings: []policy.Listing{{List: "bl.example", Weight: 3}}, Marks: []string{"m"}, Missing: []string{"x"},
	}
	table.Learn(a, adding())
	a.Facts.Listings[0].List, a.Facts.Marks[0] = "reused", "reused" // the request is used again

	refused := request("1")
	refused.Facts.Mark("refused")
	d := adding("Never")
	d.Verdict.Action = policy.Reject
	if !table.Learn(refused, d) {
		t.Error("a refusal was not this session's")
	}
	b := request("1")
	b.Stage = policy.StageData
	b.Facts.Marks, b.Facts.Missing = []string{"m", "n"}, []string{"x", "y"}
	table.Learn(b, adding())
	f, h := s.Message("", now)
	want := policy.Facts{SPF: policy.SPF{Result: "fail", Domain: "example.org"}, Provider: "p", RBLScore: 3, Listings: []policy.Listing{{List: "bl.example", Weight: 3}}, Missing: []string{"x", "y"}}
	if h != nil || fmt.Sprint(f.SPF, f.Provider, f.RBLScore, f.Listings, f.Missing) != fmt.Sprint(want.SPF, want.Provider, want.RBLScore, want.Listings, want.Missing) {
		t.Errorf("got  %+v %v\nwant %+v", f, h, want)
	}
	if fmt.Sprint(f.Marks) != "[m n]" {
		t.Errorf("marks %v", f.Marks)
	}
}

func TestBounds(t *testing.T) {
	table := New(2)
	at := func(port uint16) policy.Client { return policy.Client{Addr: client.Addr, Port: port} }
	a, b := table.Open(at(1), server), table.Open(at(2), server)
	if a == nil || b == nil || table.Open(at(3), server) != nil || table.Open(policy.Client{Addr: client.Addr}, server) != nil {
		t.Error("the limit is not two sessions with a known port")
	}
	again := table.Open(at(1), server)
	if again == nil || table.Len() != 2 {
		t.Error("the port came again")
	}
	a.Close() // late
	if table.Len() != 2 {
		t.Error("a session that lost its place took another's")
	}
	many := request("1")
	many.Client.Port = 1
	for i := range 1000 {
		many.Facts.Missing = []string{fmt.Sprint(i)}
		many.Facts.Marks = many.Facts.Missing
		table.Learn(many, adding(fmt.Sprint("X-", i)))
	}
	if f, h := again.Message("", now); len(h) != maxHeaders || len(f.Marks) != maxFacts || len(f.Missing) != maxFacts {
		t.Errorf("%d fields, %d marks, %d missing", len(h), len(f.Marks), len(f.Missing))
	}
	var none *Table
	s := none.Open(client, server)
	s.Begin()
	s.End()
	s.Close()
	if f, h := s.Message("", now); h != nil || f.RBLScore != 0 || none.Learn(request("1"), adding("A")) || none.Len() != 0 {
		t.Error("no table joins something")
	}
}

func TestConcurrentUse(t *testing.T) {
	table := New(100)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			c := policy.Client{Addr: client.Addr, Port: uint16(i%4 + 1)}
			for range 200 {
				s := table.Open(c, server)
				r := request("1")
				r.Client = c
				table.Learn(r, adding("A"))
				s.Message("", now)
				s.End()
				s.Close()
			}
		})
	}
	wg.Wait()
	if table.Len() != 0 {
		t.Errorf("%d sessions are left", table.Len())
	}
}

func BenchmarkLearn(b *testing.B) {
	table := New(10)
	r, d := request("1"), adding()
	b.Run("nobody", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			table.Learn(r, d)
		}
	})
	s := table.Open(client, server)
	defer s.Close()
	b.Run("joined", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			table.Learn(r, d)
		}
	})
}
