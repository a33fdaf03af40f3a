package rbl

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"postern/internal/adminapi"
	"postern/internal/page"
	"postern/policy"
)

// Pages are what the console shows of the check.
func (*Check) Pages() []page.Page {
	return []page.Page{{Name: "dns-lists", Title: "DNS lists", Group: "Checks", Show: showLists, Actions: []page.Action{
		{Name: "reset", Do: func(ctx context.Context, a *page.Ask) (*page.Done, error) {
			held, err := Admin{a.Client}.Reset(ctx, a.Get("list"))
			if err != nil {
				return nil, err
			}
			if !held {
				return &page.Done{Text: a.Get("list") + " was not held."}, nil
			}
			return &page.Done{Text: a.Get("list") + " counts again.", Before: "held in shadow", After: "counts"}, nil
		}},
	}}}
}

func showLists(ctx context.Context, a *page.Ask) (*page.View, error) {
	v := &page.View{Intro: "How the DNS lists are, and what they say about an address."}
	ip := strings.TrimSpace(a.Get("ip"))
	v.Add(page.Form{Title: "Test an address", Submit: "Ask every list", Fields: []page.Field{{Name: "ip", Label: "Address", Value: ip, Required: true, Placeholder: "192.0.2.7"}}})
	if ip != "" {
		addr, err := netip.ParseAddr(ip)
		if err != nil {
			return v, fmt.Errorf("%q is not an IP address", ip)
		}
		rep, err := Admin{a.Client}.Test(ctx, addr)
		if err != nil {
			return v, err
		}
		v.Add(reportBlocks(&rep)...)
	}
	all, err := Admin{a.Client}.Lists(ctx)
	t := page.Table{Title: "Lists", Columns: []string{"List", "State", "Tests", "Queries", "From memory", "Hits", "Errors", "Last error", ""}, Empty: "No DNS list is asked: rbl.lists is empty."}
	for i := range all {
		s := &all[i]
		name := page.Code(s.List)
		name.Note = strings.Join(s.Entries, ", ")
		state := page.State(page.Good, s.State.String())
		if s.State != StateOn {
			state = page.State(page.Warn, s.State.String())
			state.Note = s.Why
		} else if s.Mode != policy.Enforce {
			state = page.State(page.Warn, s.Mode.String())
		}
		var tests []string
		for _, part := range slices.Sorted(maps.Keys(s.Tests)) {
			tests = append(tests, part+" "+s.Tests[part])
		}
		tested := page.Cell{Text: strings.Join(tests, ", ")}
		if !s.LastTest.IsZero() {
			tested.Note = "tested " + adminapi.Ago(a.Now, s.LastTest) + " ago"
		}
		fault := page.Cell{Text: "-", Tone: page.Quiet}
		if s.LastError != "" {
			fault = page.At(s.LastErrorAt)
			fault.Note = s.LastError
		}
		var buttons []page.Button
		if s.State != StateOn {
			buttons = []page.Button{{Action: "reset", Label: "Reset", Values: page.Values("list", s.List)}}
		}
		t.Add(name, state, tested, page.N(s.Queries), page.N(s.Cached), page.N(s.Hits), page.N(s.Errors), fault, page.Cell{Buttons: buttons})
	}
	v.Add(t)
	return v, err
}

func reportBlocks(rep *TestReport) []page.Block {
	f := page.Facts{Title: "What would come of it"}
	v := policy.Verdict{Action: rep.Action, Reason: rep.Reason, Reply: rep.Reply}
	f.AddCell("Verdict", page.Verdict(&v))
	f.Add("Score", fmt.Sprint(rep.Score))
	if rep.Action.Refuses() {
		f.AddCell("Reply", page.Code(rep.Reply.String()))
	}
	f.Add("Note", rep.Note)
	t := page.Table{Title: "What the lists say of " + rep.Addr.String(), Columns: []string{"List", "", "Codes", "Weight", "Reason", "Took"}, Empty: "No list is asked about addresses."}
	for i := range rep.Results {
		r := &rep.Results[i]
		state := page.State(page.Quiet, "not listed")
		switch {
		case r.Error != "":
			state = page.State(page.Warn, "no answer")
			state.Note = r.Error
		case r.Listed:
			state = page.State(page.Bad, "listed")
			if r.Weight < 0 {
				state.Tone = page.Good
			}
			if !r.Counts {
				state.Note = "does not count"
			}
		}
		took := page.Cell{Text: adminapi.Tidy(r.Took).String(), Number: true}
		if r.Cached {
			took.Note = "from memory"
		}
		t.Add(page.Code(r.List), state, page.Code(strings.Join(r.Codes, " ")), page.N(r.Weight), page.T("%s", r.Reasons), took)
	}
	return []page.Block{f, t}
}
