package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"postern/internal/dnstest"
	"postern/internal/redistest"
)

// question is a PromQL expression that is shipped.
type question struct {
	from, expr string
	legend     string // of a panel: "{{label}} words"
}

// dashboard returns what the panels, variables and annotations of the shipped dashboard ask.
func dashboard(t *testing.T) (all []question) {
	t.Helper()
	b, err := os.ReadFile("../configs/grafana/postern.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Panels []struct {
			ID      int
			Type    string
			Title   string
			GridPos struct{ H, W, X, Y int }
			Targets []struct{ RefID, Expr, LegendFormat string }
		}
		Annotations struct {
			List []struct{ Name, Expr, TitleFormat string }
		}
	}
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	ids := map[int]string{}
	for i, p := range d.Panels {
		if other := ids[p.ID]; other != "" {
			t.Errorf("%q has the id of %q", p.Title, other)
		}
		ids[p.ID] = p.Title
		for _, q := range d.Panels[:i] {
			if a, b := p.GridPos, q.GridPos; a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
				t.Errorf("%q lies over %q", p.Title, q.Title)
			}
		}
		if len(p.Targets) == 0 && p.Type != "row" {
			t.Errorf("%q asks nothing", p.Title)
		}
		for _, target := range p.Targets {
			all = append(all, question{p.Title, target.Expr, target.LegendFormat})
		}
	}
	for _, a := range d.Annotations.List {
		all = append(all, question{a.Name, a.Expr, a.TitleFormat})
	}
	fill := strings.NewReplacer("$__rate_interval", "5m", "$__range", "5m", "$job", ".*", "$instance", ".*")
	for i, q := range all {
		all[i].expr = fill.Replace(q.expr)
	}
	return all
}

// alerts returns what the shipped alerts ask.
func alerts(t *testing.T) (all []question) {
	t.Helper()
	b, err := os.ReadFile("../configs/prometheus/postern.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	var f struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr string
				Annotations map[string]string
			}
		}
	}
	if err := yaml.Unmarshal(b, &f); err != nil {
		t.Fatal(err)
	}
	for _, g := range f.Groups {
		for _, r := range g.Rules {
			words := strings.ReplaceAll(r.Annotations["summary"]+r.Annotations["description"], "{{ $labels.", "{{")
			all = append(all, question{r.Alert, r.Expr, strings.ReplaceAll(words, " }}", "}}")})
		}
	}
	return all
}

// exposition is what daemons say of themselves, as Prometheus stores it.
type exposition struct {
	series []string            // name{labels}
	values map[string]string   // of each series, over an hour
	labels map[string][]string // of each metric
	all    []string            // names of all labels
}

var (
	sampleLine = regexp.MustCompile(`^(\w+)(?:\{(.*)\})? (\S+)$`)
	labelName  = regexp.MustCompile(`(\w+)="`)
	metricName = regexp.MustCompile(`\bpostern_\w+`)
	labelUse   = regexp.MustCompile(`(\w+)\s*(?:=~|!~|!=|=)\s*"`)
	labelList  = regexp.MustCompile(`\b(?:by|without|on|ignoring)\s*\(([^)]*)\)`)
	inLegend   = regexp.MustCompile(`\{\{(\w+)\}\}`)
)

func (e *exposition) add(instance, text string) {
	kinds := map[string]string{}
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			name, kind, _ := strings.Cut(strings.TrimSpace(rest), " ")
			kinds[name] = kind
			continue
		}
		m := sampleLine.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil || !strings.HasPrefix(m[1], "postern_") {
			continue
		}
		name, labels := m[1], strings.TrimPrefix(m[2]+`,job="postern",instance="`+instance+`"`, ",")
		series := name + "{" + labels + "}"
		e.series = append(e.series, series)
		e.values[series] = m[3] + "+60x60" // a counter, or part of a histogram
		if kinds[name] == "gauge" {
			e.values[series] = m[3] + "x60"
		}
		for _, l := range labelName.FindAllStringSubmatch(labels, -1) {
			e.labels[name] = append(e.labels[name], l[1])
			e.all = append(e.all, l[1])
		}
	}
}

// Every expression of the dashboard gets an answer from what running daemons
// say, one with a file and one with Redis, and no expression of dashboard or
// alerts names a metric or a label that they do not have.
func TestDashboard(t *testing.T) {
	t.Parallel()
	requireOnly(t, "promtool")
	dns := dnstest.Start(t)
	list(dns, "bl.example")
	dns.Add("spf.example. 60 IN TXT \"v=spf1 ip4:203.0.113.0/24 -all\"")
	redis := redistest.Start(t)
	e := &exposition{values: map[string]string{}, labels: map[string][]string{}}
	for _, store := range []string{"", fmt.Sprintf("[store]\nkind = \"redis\"\nredis = { addrs = [%q] }\n", redis.Addr())} {
		d := newDaemon(t, withDNS(`
hostname = "mx.example.com"
[milter]
listen = ["unix:{dir}/milter.sock"]
[lookup]
listen = ["unix:{dir}/lookup.sock"]
[tables.aliases]
source = "texthash:{dir}/aliases"
search = "exact"
[dns]
[chains.inbound]
checks = ["access", "limit", "provider", "client", "rbl", "spf", "verify", "known", "greylist"]
[access]
allow = ["inline:192.0.2.77 skip=rbl,client,spf,greylist"]
deny = ["inline:198.51.100.0/24"]
[client]
mode = "shadow"
[rbl]
lists = ["bl.example*3"]
[spf]
mode = "off"
[provider]
state_dir = "{dir}/providers"
[[provider.list]]
name = "some"
domains = ["spf.example"]
[[verify.route]]
domains = ["example.net"]
sources = ["callout"]
next_hop = "[127.0.0.1]:9"
[[limit.rule]]
name = "per-client"
rate = "100/1m"
`+store, dns))
		d.put("aliases", "a b\n")
		d.start()
		c := d.dial()
		for _, client := range []string{"198.51.100.1", "192.0.2.77", "192.0.2.8"} {
			c.MustAsk(t, sample(client, "ann@example.org", "bob@example.com").With("helo_name", "nodot"))
		}
		dns.Behave("3.2.0.192.bl.example.", dnstest.ServFail)
		c.MustAsk(t, sample("192.0.2.3", "ann@example.org", "bob@example.com"))
		e.add(fmt.Sprintf("mx%d", len(store)), d.metrics())
	}
	e.all = append(e.all, "le")

	type promqlTest struct {
		Expr     string `yaml:"expr"`
		EvalTime string `yaml:"eval_time"`
	}
	type inputSeries struct {
		Series string `yaml:"series"`
		Values string `yaml:"values"`
	}
	type test struct {
		Interval string        `yaml:"interval"`
		Series   []inputSeries `yaml:"input_series"`
		Tests    []promqlTest  `yaml:"promql_expr_test"`
	}
	one := test{Interval: "1m"}
	for _, s := range e.series {
		one.Series = append(one.Series, inputSeries{s, e.values[s]})
	}
	asked := dashboard(t)
	for _, q := range asked {
		if strings.Contains(q.expr, "changes(") {
			continue // nothing changes here
		}
		// What has an answer is not absent: none is expected.
		one.Tests = append(one.Tests, promqlTest{"absent(" + q.expr + ")", "30m"})
	}
	if len(one.Tests) < 40 {
		t.Fatalf("the dashboard asks %d things only", len(one.Tests))
	}
	text, err := yaml.Marshal(map[string]any{"evaluation_interval": "1m", "tests": []test{one}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "dashboard.yml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("promtool", "test", "rules", file).CombinedOutput(); err != nil {
		t.Errorf("promtool: %v\n%s", err, out)
	}

	for _, q := range append(asked, alerts(t)...) {
		metrics := metricName.FindAllString(q.expr, -1)
		if len(metrics) == 0 && !strings.HasPrefix(q.expr, "up{") {
			t.Errorf("%s: %s asks for none of our metrics", q.from, q.expr)
		}
		known := []string{"job", "instance", "le"}
		for _, name := range metrics {
			if e.labels[name] == nil && name != "postern_dkim_key_usable" { // no keys here
				t.Errorf("%s: there is no metric %s", q.from, name)
			}
			known = append(known, e.labels[name]...)
		}
		used := labelUse.FindAllStringSubmatch(q.expr, -1)
		used = append(used, inLegend.FindAllStringSubmatch(q.legend, -1)...)
		for _, l := range labelList.FindAllStringSubmatch(q.expr, -1) {
			for _, name := range strings.Split(l[1], ",") {
				used = append(used, []string{"", strings.TrimSpace(name)})
			}
		}
		for _, l := range used {
			if !slices.Contains(known, l[1]) {
				t.Errorf("%s: %s: no metric in it has a label %s", q.from, q.expr, l[1])
			}
		}
		// What a legend names must be left over by the sum.
		if by := labelList.FindStringSubmatch(q.expr); by != nil && strings.Contains(q.expr, "by (") {
			for _, l := range inLegend.FindAllStringSubmatch(q.legend, -1) {
				if !strings.Contains(by[1], l[1]) {
					t.Errorf("%s: %s: {{%s}} is summed away", q.from, q.expr, l[1])
				}
			}
		}
	}
}
