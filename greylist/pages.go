package greylist

import (
	"context"
	"fmt"
	"strings"

	"postern/internal/page"
)

// Pages are what the console shows of the check.
func (*Check) Pages() []page.Page {
	return []page.Page{{Name: "greylist", Title: "Greylist", Group: "Checks", Show: showGreylist, Actions: []page.Action{
		{Name: "forget", Do: func(ctx context.Context, a *page.Ask) (*page.Done, error) {
			f := filterGiven(a)
			n, err := Admin{a.Client}.Forget(ctx, f, false)
			if err != nil {
				return nil, err
			}
			return &page.Done{Text: page.Thousands(int64(n)) + " entries were forgotten.", Before: fmt.Sprint(n, " entries")}, nil
		}},
	}}}
}

// shown is how many entries a page has.
const shown = 200

func filterGiven(a *page.Ask) Filter {
	return Filter{Kind: a.Get("kind"), Who: strings.TrimSpace(a.Get("who")), Sender: strings.TrimSpace(a.Get("sender")), Recipient: strings.TrimSpace(a.Get("recipient"))}
}

func showGreylist(ctx context.Context, a *page.Ask) (*page.View, error) {
	v := &page.View{Intro: "Who waits, who has passed, and what they have earned by it."}
	n, err := Admin{a.Client}.Stats(ctx)
	if err != nil {
		return v, err
	}
	v.Add(page.Tiles{
		{Name: "Waiting", Value: page.Thousands(int64(n.Waiting)), Note: "first contacts", Href: page.Link("greylist", "kind", KindWaiting)},
		{Name: "Passed", Value: page.Thousands(int64(n.Triplets)), Note: "triplets", Href: page.Link("greylist", "kind", KindTriplet)},
		{Name: "Known", Value: page.Thousands(int64(n.Credits)), Note: "clients that have passed", Href: page.Link("greylist", "kind", KindCredit)},
	})
	f := filterGiven(a)
	fields := []page.Field{
		{Name: "who", Label: "Client", Value: f.Who, Hint: "A part of its network or name."},
		{Name: "sender", Label: "Sender", Value: f.Sender, Hint: "A part of it."},
		{Name: "recipient", Label: "Recipient", Value: f.Recipient, Hint: "A part of it."},
		{Name: "kind", Label: "Kind", Value: f.Kind, Type: "select", Choices: page.Choices("all", KindWaiting, KindTriplet, KindCredit)},
	}
	v.Add(page.Form{Fields: fields})
	f.Limit = shown + 1
	t := page.Table{Columns: []string{"Client", "Kind", "From and to", "First seen", "Last seen", "Attempts", ""}, Empty: "No entry is found."}
	err = Admin{a.Client}.List(ctx, f, func(e Entry) bool {
		if len(t.Rows) == shown {
			t.More = "There are more: search for some."
			return false
		}
		who := page.Code(e.Match)
		if e.Match == "" {
			who = page.Code(e.Credit)
		} else if e.Credit != "" && e.Credit != e.Match {
			who.Note = "credit: " + e.Credit
		}
		kind := page.State(page.Good, e.Kind)
		if e.Kind == KindWaiting {
			kind.Tone = page.Warn
		}
		pair := page.Cell{}
		if e.Kind != KindCredit {
			pair = page.Cell{Text: e.Sender, Note: "to " + e.Recipient}
			if e.Sender == "" {
				pair.Text = "<>"
			}
		}
		count := page.N(e.Attempts)
		if e.Attempts == 0 {
			count = page.N(e.Passes)
			count.Note = "passes"
		}
		t.Add(who, kind, pair, page.At(e.First), page.At(e.Last), count, page.Cell{Buttons: []page.Button{{
			Action: "forget", Label: "Forget", Danger: true, Values: page.Values("kind", e.Kind, "who", who.Text, "sender", e.Sender, "recipient", e.Recipient),
			Confirm: fmt.Sprintf("Forget the %s of %s? Whoever it is waits again at the next contact. What matches in part is forgotten as well.", e.Kind, who.Text),
		}}})
		return true
	})
	v.Add(t)
	if f.Who+f.Sender+f.Recipient != "" && len(t.Rows) > 1 {
		v.Add(page.Actions{{
			Action: "forget", Label: "Forget all that the search finds", Danger: true, Values: page.Values("kind", f.Kind, "who", f.Who, "sender", f.Sender, "recipient", f.Recipient),
			Confirm: "Forget all entries that the search finds, those that are not shown as well?",
		}})
	}
	return v, err
}
