package verify

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"postern/internal/page"
)

// Pages are what the console shows of the check.
func (*Check) Pages() []page.Page {
	return []page.Page{{Name: "recipients", Title: "Recipients", Group: "Checks", Show: showRecipients, Actions: []page.Action{
		{Name: "ask", Do: func(ctx context.Context, a *page.Ask) (*page.Done, error) {
			rep, err := Admin{a.Client}.Ask(ctx, strings.TrimSpace(a.Get("address")))
			if err != nil {
				return nil, err
			}
			return &page.Done{View: reportView(rep), After: string(rep.Now.Result)}, nil
		}},
		{Name: "purge", Do: func(ctx context.Context, a *page.Ask) (*page.Done, error) {
			f, err := filterGiven(a)
			if err != nil {
				return nil, err
			}
			done, err := Admin{a.Client}.Purge(ctx, f, false)
			if err != nil {
				return nil, err
			}
			return &page.Done{Text: page.Thousands(int64(done.Addresses)) + " addresses were forgotten.", Before: fmt.Sprint(done.Addresses, " addresses")}, nil
		}},
		{Name: "recheck", Do: func(ctx context.Context, a *page.Ask) (*page.Done, error) {
			f, err := filterGiven(a)
			if err != nil {
				return nil, err
			}
			done, err := Admin{a.Client}.Recheck(ctx, f, false)
			if err != nil {
				return nil, err
			}
			text := page.Thousands(int64(done.Addresses)) + " addresses are asked about."
			if done.Left > 0 {
				text += fmt.Sprintf(" %d were left out: too many at once, or no route any more.", done.Left)
			}
			return &page.Done{Text: text}, nil
		}},
	}}}
}

func filterGiven(a *page.Ask) (Filter, error) {
	f, err := ParseFilter(strings.TrimSpace(a.Get("which")))
	f.Negative = a.Get("negative") == "true"
	if err == nil && f.Which == "" && !f.Negative {
		err = errors.New("say which: an address, @domain, or all but known addresses")
	}
	return f, err
}

// shown is how many addresses a page has.
const shown = 200

func toneOf(r Result) page.Tone {
	switch r {
	case Known:
		return page.Good
	case Unknown:
		return page.Bad
	}
	return page.Warn
}

func showRecipients(ctx context.Context, a *page.Ask) (*page.View, error) {
	v := &page.View{Intro: "Whether an address exists is asked behind this gateway, and remembered for a time."}
	hops, err := Admin{a.Client}.NextHops(ctx)
	if err != nil {
		return v, err
	}
	v.Add(page.Form{Title: "Ask about an address", Action: "ask", Submit: "Ask now", Note: "The next hop is asked whatever is remembered, and the answer is kept. The dialogue is shown.",
		Fields: []page.Field{{Name: "address", Label: "Address", Required: true, Placeholder: "ann@example.com"}}})
	t := page.Table{Title: "Next hops", Columns: []string{"Next hop", "State", "Asked", "In the last minute", "Failed", "On average", "Connections", "Last error"}, Empty: "None has been asked since the start."}
	for i := range hops.NextHops {
		h := &hops.NextHops[i]
		state := page.State(page.Good, h.State)
		if h.State != "up" {
			state.Tone = page.Warn
		}
		if h.Alarm != "" {
			state.Tone, state.Note = page.Bad, h.Alarm
		}
		var all []string
		for _, domain := range slices.Sorted(maps.Keys(h.AcceptAll)) {
			if h.AcceptAll[domain] {
				all = append(all, domain)
			}
		}
		if len(all) > 0 {
			state.Note = strings.TrimSpace(state.Note + " takes every address of " + strings.Join(all, ", "))
		}
		fault := page.Cell{Text: "-", Tone: page.Quiet}
		if h.LastError != "" {
			fault = page.At(h.ErrorAt)
			fault.Note = h.LastError
		}
		t.Add(page.Code(h.NextHop), state, page.N(h.Asked), page.N(h.PerMinute), page.N(h.Failed), page.Cell{Text: fmt.Sprintf("%.0f ms", h.MeanSeconds*1000), Number: true},
			page.Cell{Text: fmt.Sprint(h.Connections), Note: fmt.Sprintf("%d idle, %d waiting", h.Idle, h.Waiting)}, fault)
	}
	v.Add(t)
	if len(hops.Directories) > 0 {
		d := page.Table{Title: "Directories", Columns: []string{"Directory", "State", "Server", "Asked", "Failed", "Last error"}}
		for _, one := range hops.Directories {
			state := page.State(page.Good, "usable")
			if !one.Healthy {
				state = page.State(page.Bad, "not usable")
			}
			fault := page.Cell{Text: "-", Tone: page.Quiet}
			if one.LastError != "" {
				fault = page.At(one.ErrorAt)
				fault.Note = one.LastError
			}
			d.Add(page.Code(one.Name), state, page.Code(one.Server), page.N(one.Asked), page.N(one.Failed), fault)
		}
		v.Add(d)
	}
	which, negative := strings.TrimSpace(a.Get("which")), a.Get("negative")
	v.Add(page.Form{Title: "What is remembered", Fields: []page.Field{
		{Name: "which", Label: "Which", Value: which, Placeholder: "@example.com", Hint: "An address, or a domain behind an @."},
		{Name: "negative", Label: "All but known addresses", Value: negative, Type: "checkbox"},
	}})
	f, err := ParseFilter(which)
	if err != nil {
		return v, err
	}
	f.Negative, f.Limit = negative == "true", shown+1
	list := page.Table{Columns: []string{"Address", "Result", "Found", "By", "Until", ""}, Empty: "No address is remembered."}
	err = Admin{a.Client}.List(ctx, f, func(r Record) bool {
		if len(list.Rows) == shown {
			list.More = "There are more: search for some."
			return false
		}
		result := page.State(toneOf(r.Result), string(r.Result))
		if r.Error != "" {
			result.Note = "the last attempt failed: " + r.Error
		}
		if r.Asking {
			result.Note = "being asked about"
		}
		list.Add(page.Code(r.Address), result, page.At(r.At), page.Cell{Text: r.Source, Note: r.Detail}, page.At(r.Expires), page.Cell{Buttons: []page.Button{
			{Action: "recheck", Label: "Ask again", Values: page.Values("which", r.Address)}, {Action: "purge", Label: "Forget", Danger: true, Values: page.Values("which", r.Address)},
		}})
		return true
	})
	v.Add(list)
	if (f.Which != "" || f.Negative) && len(list.Rows) > 1 {
		values := page.Values("which", which, "negative", negative)
		v.Add(page.Actions{
			{Action: "recheck", Label: "Ask again about all of them", Values: values},
			{Action: "purge", Label: "Forget all of them", Danger: true, Values: values, Confirm: "Forget all addresses that the search finds, those that are not shown as well? They are asked about anew."},
		})
	}
	return v, err
}

func reportView(rep *Report) *page.View {
	v := &page.View{Title: rep.Address}
	f := page.Facts{Title: "Answer"}
	if rep.AcceptAll {
		f.AddCell("Now", page.Cell{Text: "The next hop takes every address of the domain: its answer says nothing.", Tone: page.Warn})
	} else {
		now := page.State(toneOf(rep.Now.Result), string(rep.Now.Result))
		now.Note = strings.TrimSpace(rep.Now.Source + ": " + rep.Now.Detail)
		f.AddCell("Now", now)
	}
	if rep.Before != nil {
		c := page.State(toneOf(rep.Before.Result), string(rep.Before.Result))
		f.AddCell("Before", c)
	}
	if rep.After != nil && rep.After.Result != rep.Now.Result {
		f.AddCell("Kept", page.Cell{Text: string(rep.After.Result), Note: "one answer does not change what is known; forget it to have it changed"})
	}
	f.Add("Route", rep.Route)
	f.Add("Sources", strings.Join(rep.Sources, ", "))
	f.Add("Next hop", strings.Join(rep.NextHop, ", "))
	f.Add("Took", rep.Took)
	v.Add(f)
	if len(rep.Dialogue) > 0 {
		v.Add(page.Text{Title: "Dialogue", Text: strings.Join(rep.Dialogue, "\n")})
	}
	v.Add(page.Links{{Text: "Back to the recipients", Href: page.Link("recipients")}})
	return v
}
