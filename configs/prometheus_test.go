package configs_test

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Every metric that an alert asks for is one that the daemon has.
func TestAlertsNameMetrics(t *testing.T) {
	var source strings.Builder
	err := filepath.WalkDir("..", func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && slices.Contains([]string{".git", "build", "bench"}, e.Name()):
			return filepath.SkipDir
		case strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go"):
			b, err := os.ReadFile(path)
			source.Write(b)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	rules := read(t, "prometheus/postern.rules.yml")
	names := regexp.MustCompile(`postern_[a-z_]+`).FindAllString(rules, -1)
	slices.Sort(names)
	if names = slices.Compact(names); len(names) < 8 {
		t.Fatalf("only %q", names)
	}
	for _, name := range names {
		// Some are made of a prefix and the rest.
		found := strings.Contains(source.String(), `"`+name+`"`)
		for i := len("postern_"); !found && i < len(name); i++ {
			found = name[i-1] == '_' && strings.Contains(source.String(), `"`+name[:i]+`"`) && strings.Contains(source.String(), `"`+name[i:]+`"`)
		}
		if !found {
			t.Errorf("there is no metric %s", name)
		}
	}
}

// Prometheus takes the rules, and each alert comes when it must and not before.
func TestAlerts(t *testing.T) {
	promtool := find(t, "promtool")
	for _, args := range [][]string{{"check", "rules", "prometheus/postern.rules.yml"}, {"test", "rules", "prometheus/postern.test.yml"}} {
		if out, err := exec.Command(promtool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %v: %v\n%s", args, err, out)
		}
	}
	tests := read(t, "prometheus/postern.test.yml")
	alerts := regexp.MustCompile(`- alert: (\w+)`).FindAllStringSubmatch(read(t, "prometheus/postern.rules.yml"), -1)
	if len(alerts) < 8 {
		t.Fatalf("only %q", alerts)
	}
	for _, a := range alerts {
		quiet, _ := regexp.MatchString(`\{eval_time: \w+, alertname: `+a[1]+`\}`, tests)
		comes, _ := regexp.MatchString(`alertname: `+a[1]+`\n +exp_alerts:`, tests)
		if !quiet || !comes {
			t.Errorf("%s is tested quiet: %v, and coming: %v", a[1], quiet, comes)
		}
	}
}
