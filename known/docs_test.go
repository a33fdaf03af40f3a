package known

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
	"github.com/prometheus/client_golang/prometheus"

	"postern/internal/conf"
)

type noStore struct{ Store }

func (noStore) Count() int { return 0 }

// The manual's examples load, and it names every reason and metric, and no
// others.
func TestManual(t *testing.T) {
	b, err := os.ReadFile("../docs/checks/known.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	blocks := strings.Split(text, "```toml\n")[1:]
	if len(blocks) != 2 {
		t.Fatalf("%d examples", len(blocks))
	}
	for _, block := range blocks {
		block, _, _ = strings.Cut(block, "```")
		doc := struct {
			Known  Config `toml:"known"`
			Chains any    `toml:"chains"`
		}{Known: DefaultConfig()}
		if err := toml.NewDecoder(strings.NewReader(block)).DisallowUnknownFields().Decode(&doc); err != nil {
			t.Errorf("%v in\n%s", err, block)
		}
		doc.Known.SharedDomains = nil // not there
		var fs conf.Faults
		if doc.Known.Validate("known", &fs); fs != nil {
			t.Errorf("%v in\n%s", fs, block)
		}
	}
	rules := map[string]sharedRule{}
	_, list, _ := strings.Cut(text, "    # One domain a line")
	list, _, _ = strings.Cut(list, "\n\n")
	if faults := parseShared("manual", "#"+list, rules); faults != nil || len(rules) != 2 {
		t.Errorf("%v, %v", rules, faults)
	}
	reg := prometheus.NewRegistry()
	none := noStore{}
	newMetrics(reg, Stores{Correspondents: none, Domains: none, Expected: none})
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{reasonLearned, reasonAtEnd, reasonAutomatic}
	for _, f := range families {
		want = append(want, f.GetName()+"{"+f.GetMetric()[0].GetLabel()[0].GetName()+"}")
		for _, m := range f.GetMetric() {
			if v := m.GetLabel()[0].GetValue(); !strings.Contains(text, "`"+v+"`") {
				t.Errorf("the manual does not name %s of %s", v, f.GetName())
			}
		}
	}
	var got []string
	for _, m := range regexp.MustCompile("`(known-[a-z-]+|postern_known_[a-z_{}]+)`").FindAllStringSubmatch(text, -1) {
		got = append(got, m[1])
	}
	slices.Sort(want)
	slices.Sort(got)
	if got = slices.Compact(got); !slices.Equal(want, got) {
		t.Errorf("the manual names\n%v\nthere are\n%v", got, want)
	}
	for _, number := range []string{"180 days", "(200000)", "`domain_users` (3)", "queue of 4096", "first 100 are learned", "within 30 seconds"} {
		if !strings.Contains(text, number) {
			t.Errorf("the manual does not say %q", number)
		}
	}
	if d := DefaultConfig(); d.Keep.String() != "180d" || d.MaxEntries != 200_000 || d.DomainUsers != 3 || queueSize != 4096 || maxRecipients != 100 {
		t.Error("a number of the manual has changed")
	}
}
