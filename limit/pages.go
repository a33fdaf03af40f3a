package limit

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"postern/internal/conf"
	"postern/internal/page"
)

// Pages are what the console shows of the check.
func (*Check) Pages() []page.Page {
	return []page.Page{{Name: "limits", Title: "Limits", Group: "Checks", Show: showLimits, Actions: []page.Action{
		{Name: "reset", Do: func(ctx context.Context, a *page.Ask) (*page.Done, error) {
			if err := (Admin{a.Client}).Reset(ctx, a.Get("key")); err != nil {
				return nil, err
			}
			return &page.Done{Text: a.Get("key") + " is empty.", Before: a.Get("used"), After: "0"}, nil
		}},
		{Name: "raise", Do: func(ctx context.Context, a *page.Ask) (*page.Done, error) {
			to, err := strconv.ParseInt(strings.TrimSpace(a.Get("to")), 10, 64)
			if err != nil || to <= 0 {
				return nil, fmt.Errorf("%q is no number of units", a.Get("to"))
			}
			d, err := conf.ParseDuration(strings.TrimSpace(a.Get("for")))
			if err != nil {
				return nil, err
			}
			one, err := Admin{a.Client}.Raise(ctx, strings.TrimSpace(a.Get("key")), to, d)
			if err != nil {
				return nil, err
			}
			text := fmt.Sprintf("%s is raised to %d until %s.", one.Key, one.To, one.Until.Local().Format("2006-01-02 15:04"))
			return &page.Done{Text: text, After: fmt.Sprint(one.To)}, nil
		}},
		{Name: "cancel", Do: func(ctx context.Context, a *page.Ask) (*page.Done, error) {
			if err := (Admin{a.Client}).CancelRaise(ctx, a.Get("key")); err != nil {
				return nil, err
			}
			return &page.Done{Text: a.Get("key") + " is raised no longer."}, nil
		}},
		{Name: "notify", Do: func(ctx context.Context, a *page.Ask) (*page.Done, error) {
			all, err := Admin{a.Client}.TestNotify(ctx, strings.TrimSpace(a.Get("rule")))
			if err != nil {
				return nil, err
			}
			var texts []string
			for _, t := range all {
				if t.Error != "" {
					texts = append(texts, t.Notify+" failed: "+t.Error)
				} else {
					texts = append(texts, t.Notify+" was sent")
				}
			}
			return &page.Done{Text: "A test: " + strings.Join(texts, "; ") + "."}, nil
		}},
	}}}
}

func showLimits(ctx context.Context, a *page.Ask) (*page.View, error) {
	const shown = 100
	v := &page.View{Intro: "Who has used how much of which limit, those first who are nearest to it."}
	find := strings.TrimSpace(a.Get("find"))
	all, err := Admin{a.Client}.Top(ctx, find, shown)
	if err != nil {
		return v, err
	}
	v.Add(page.Form{Fields: []page.Field{{Name: "find", Label: "Key", Value: find, Placeholder: "ann@example.org", Hint: "A part of it."}}})
	t := page.Table{Columns: []string{"Whose", "Used", "", "Raised until", ""}, Empty: "Nothing has been used."}
	for _, m := range all {
		share := page.State(page.Good, fmt.Sprintf("%.0f %%", 100*m.Share))
		switch {
		case m.Share >= 1:
			share.Tone = page.Bad
		case m.Share >= 0.8:
			share.Tone = page.Warn
		}
		key := page.Code(m.Key)
		key.Note = "rule " + m.Rule
		t.Add(key, share, page.Cell{Text: page.Thousands(m.Used) + " of " + page.Thousands(m.Most), Number: true}, page.At(m.Raised), page.Cell{Buttons: []page.Button{
			{Action: "raise", Label: "Double it for a day", Values: page.Values("key", m.Key, "to", fmt.Sprint(2*m.Most), "for", "24h")},
			{Action: "reset", Label: "Reset", Danger: true, Values: page.Values("key", m.Key, "used", fmt.Sprint(m.Used)), Confirm: "Empty the meter " + m.Key + "?"},
		}})
	}
	v.Add(t)
	raised, err := Admin{a.Client}.Raised(ctx)
	r := page.Table{Title: "Raised for a time", Columns: []string{"Key", "To", "Until", ""}}
	for _, one := range raised {
		r.Add(page.Code(one.Key), page.N(one.To), page.At(one.Until), page.Cell{Buttons: []page.Button{{Action: "cancel", Label: "End it", Values: page.Values("key", one.Key)}}})
	}
	v.Add(r, page.Form{Title: "Raise a limit for a time", Action: "raise", Submit: "Raise it", Closed: true, Fields: []page.Field{
		{Name: "key", Label: "Key", Value: find, Required: true, Placeholder: "logins/day/ann@example.org", Hint: "As it stands above."},
		{Name: "to", Label: "To", Type: "number", Required: true, Hint: "Units of a quota; of a rate how many may come at once."},
		{Name: "for", Label: "For", Value: "8h", Required: true, Hint: "2h, 3d."},
	}}, page.Form{Title: "Send a test to whom a rule notifies", Action: "notify", Submit: "Send it", Closed: true, Fields: []page.Field{{Name: "rule", Label: "Rule", Required: true}}})
	return v, err
}
