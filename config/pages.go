package config

import (
	"context"
	"fmt"
	"strings"

	"postern/internal/page"
)

// Pages are what the console shows of the configuration in force.
func Pages(now func() *Config) []page.Page {
	return []page.Page{{Name: "settings", Title: "Settings", Group: "Gateway", Role: page.RoleAdmin, Show: func(_ context.Context, a *page.Ask) (*page.View, error) {
		return settingsView(now(), a), nil
	}}}
}

// placeOf is where a key stands.
func placeOf(s *Setting) string {
	if s.File == "" {
		return ""
	}
	return fmt.Sprintf("%s:%d", s.File, s.Line)
}

func settingsView(c *Config, a *page.Ask) *page.View {
	v := &page.View{Intro: "The settings in force, with where they are set and what they mean. They stand in files: " + c.Path + " and conf.d beside it. Secrets are in files of their own and are not shown."}
	all := c.Settings()
	section, find, which := a.Get("section"), strings.ToLower(strings.TrimSpace(a.Get("find"))), a.Get("which")
	choices := []page.Choice{{Value: "", Label: "all"}}
	for _, s := range Sections(all) {
		if s != "" {
			choices = append(choices, page.Choice{Value: s, Label: s})
		}
	}
	v.Add(page.Form{Fields: []page.Field{
		{Name: "find", Label: "Text", Value: a.Get("find"), Hint: "In the key, its value or its documentation."},
		{Name: "section", Label: "Section", Value: section, Type: "select", Choices: choices},
		{Name: "which", Label: "Which", Value: which, Type: "select", Choices: []page.Choice{{Value: "", Label: "those that are set"}, {Value: "all", Label: "all"}}},
	}})
	given, shown := 0, 0
	var tables []*page.Table
	for i := range all {
		s := &all[i]
		if s.File != "" {
			given++
		}
		top, _, _ := strings.Cut(strings.SplitN(s.Section, "[", 2)[0], ".")
		if section != "" && top != section || which != "all" && section == "" && find == "" && s.File == "" ||
			find != "" && !strings.Contains(strings.ToLower(s.Section+"."+s.Key+" "+s.Value+" "+s.Doc), find) {
			continue
		}
		shown++
		title := "Top level"
		if s.Section != "" {
			title = "[" + s.Section + "]"
		}
		if len(tables) == 0 || tables[len(tables)-1].Title != title {
			tables = append(tables, &page.Table{Title: title, Columns: []string{"Key", "Value", "Default", "What it is"}})
		}
		key, value := page.Code(s.Key), page.Code(s.Value)
		origin := page.Cell{Text: s.Default, Code: true, Tone: page.Quiet}
		if key.Note = placeOf(s); s.File == "" {
			value.Tone = page.Quiet
		}
		tables[len(tables)-1].Add(key, value, origin, page.T("%s", strings.ReplaceAll(s.Doc, "`", "")))
	}
	v.Add(page.Tiles{
		{Name: "Keys", Value: fmt.Sprint(len(all)), Href: page.Link("settings", "which", "all")}, {Name: "Set in files", Value: fmt.Sprint(given), Href: page.Link("settings")},
		{Name: "Shown", Value: fmt.Sprint(shown)},
	})
	for _, t := range tables {
		v.Add(*t)
	}
	return v
}
