package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// manCommand writes the manual pages. It is for `make package`.
func (c *cli) manCommand() *cobra.Command {
	var configuration string
	cmd := &cobra.Command{
		Use: "man DIR", Short: "write the manual pages postern(1) and postern.toml(5)", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(args[0], "postern.1"), md2man.Render(commandsPage(cmd.Root())), 0o644); err != nil {
				return err
			}
			if configuration == "" {
				return nil
			}
			text, err := os.ReadFile(configuration)
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(args[0], "postern.toml.5"), md2man.Render(configurationPage(string(text))), 0o644)
		},
	}
	cmd.Flags().StringVar(&configuration, "configuration", "", "the reference of the configuration, docs/configuration.md")
	return cmd
}

// commandsPage is postern(1), from what --help says.
func commandsPage(root *cobra.Command) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%% POSTERN 1 \"\" \"postern\" \"postern\"\n\n# NAME\n\npostern - %s\n\n# SYNOPSIS\n\n**postern** [**-c** *FILE*] [**--json**] *COMMAND*\n\n# DESCRIPTION\n\n%s\n\n", root.Short, root.Long)
	fmt.Fprint(&b, "# OPTIONS\n\nThese go with every command.\n\n")
	flags(&b, root.PersistentFlags())
	fmt.Fprint(&b, "# COMMANDS\n\n")
	commands(&b, root)
	fmt.Fprint(&b, "# FILES\n\n*/etc/postern/postern.toml*, */etc/postern/conf.d/\\*.toml*: postern.toml(5).\n\n*/var/lib/postern*: state.\n\n"+
		"# SEE ALSO\n\npostern.toml(5), postconf(1), postfix(1), and */usr/share/doc/postern*.\n")
	return b.Bytes()
}

func commands(b *bytes.Buffer, of *cobra.Command) {
	for _, cmd := range of.Commands() {
		if cmd.Hidden || cmd.Name() == "help" || cmd.Name() == "completion" {
			continue
		}
		if cmd.Runnable() || !cmd.HasSubCommands() {
			fmt.Fprintf(b, "## %s\n\n%s.\n\n", cmd.UseLine(), sentence(cmd.Short))
			if cmd.Long != "" {
				fmt.Fprintf(b, "%s\n\n", cmd.Long)
			}
			flags(b, cmd.NonInheritedFlags())
			if cmd.Example != "" {
				fmt.Fprintf(b, "```\n%s\n```\n\n", cmd.Example)
			}
		}
		commands(b, cmd)
	}
}

func sentence(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

func flags(b *bytes.Buffer, set *pflag.FlagSet) {
	set.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		name := "**--" + f.Name + "**"
		if f.Shorthand != "" {
			name = "**-" + f.Shorthand + "**, " + name
		}
		kind, usage := pflag.UnquoteUsage(f)
		if kind != "" {
			name += " *" + kind + "*"
		}
		fmt.Fprintf(b, "%s\n: %s\n\n", name, usage)
	})
}

// configurationPage is postern.toml(5), from the reference. Tables of keys
// become lists: a terminal is too narrow for them.
func configurationPage(text string) []byte {
	var b bytes.Buffer
	b.WriteString("% POSTERN.TOML 5 \"\" \"postern\" \"postern\"\n\n# NAME\n\npostern.toml - configuration of postern\n\n# DESCRIPTION\n\n")
	_, text, _ = strings.Cut(text, "-->")
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		switch cells := strings.Split(strings.Trim(line, "|"), " | "); {
		case strings.HasPrefix(line, "| key "), strings.HasPrefix(line, "|---"):
		case strings.HasPrefix(line, "| ") && len(cells) >= 3:
			key := strings.Trim(strings.TrimSpace(cells[0]), "`")
			value := strings.TrimSpace(cells[1])
			fmt.Fprintf(&b, "**%s** (%s)\n: %s\n\n", key, value, strings.ReplaceAll(strings.TrimSpace(strings.Join(cells[2:], " | ")), `\|`, "|"))
		case strings.HasPrefix(line, "## "):
			b.WriteString("# " + strings.ToUpper(line[3:]) + "\n")
		default:
			b.WriteString(line + "\n")
		}
	}
	b.WriteString("\n# SEE ALSO\n\npostern(1)\n")
	return b.Bytes()
}
