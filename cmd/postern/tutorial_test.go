package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"postern/docs/tutorial/tld"
)

func (c *cli) tldCommand() *cobra.Command {
	return &cobra.Command{
		Use: "tld", Short: "how many senders were refused by their top-level domain", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			out, err := tld.Admin{Client: cl}.Refused(cmd.Context())
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), out, func(w io.Writer) { fmt.Fprintln(w, out.Refused, "refused") })
		},
	}
}

// The sub-command of docs/new-check.md makes the check's call.
func TestTheTutorialsCommand(t *testing.T) {
	check, err := tld.New(tld.DefaultConfig())
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	for pattern, handler := range check.Calls() {
		mux.Handle(pattern, handler)
	}
	s := httptest.NewServer(mux)
	defer s.Close()
	for _, tt := range [][2]string{{"tld", "0 refused\n"}, {"tld --json", "{\n  \"refused\": 0\n}\n"}} {
		c := &cli{}
		root := c.root()
		root.AddCommand(c.tldCommand())
		var out strings.Builder
		root.SetOut(&out)
		root.SetArgs(append(strings.Fields(tt[0]), "--socket", "tcp:"+s.Listener.Addr().String()))
		if err := root.ExecuteContext(t.Context()); err != nil || out.String() != tt[1] {
			t.Errorf("%s: %q, %v; want %q", tt[0], out.String(), err, tt[1])
		}
	}
}
