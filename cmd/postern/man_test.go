package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// The manual pages name every command, and every key of the configuration.
func TestManualPages(t *testing.T) {
	root := (&cli{}).root()
	page := string(commandsPage(root))
	var walk func(of *cobra.Command)
	walk = func(of *cobra.Command) {
		for _, cmd := range of.Commands() {
			if cmd.Hidden || cmd.Name() == "help" || cmd.Name() == "completion" {
				continue
			}
			if cmd.Runnable() && !strings.Contains(page, "\n## "+cmd.CommandPath()) {
				t.Errorf("postern(1) has no %s", cmd.CommandPath())
			}
			walk(cmd)
		}
	}
	walk(root)
	reference, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	keys := regexp.MustCompile("(?m)^\\| `([a-z0-9_]+)` \\|").FindAllStringSubmatch(string(reference), -1)
	if len(keys) < 200 {
		t.Fatalf("%d keys", len(keys))
	}
	page = string(configurationPage(string(reference)))
	for _, k := range keys {
		if !strings.Contains(page, "\n**"+k[1]+"** (") {
			t.Errorf("postern.toml(5) has no %s", k[1])
		}
	}
	if strings.Contains(page, "\n|") {
		t.Error("postern.toml(5) has a table")
	}
}
