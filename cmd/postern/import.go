package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"postern/internal/adminapi"
	"postern/moving"
	"postern/store"
)

func (c *cli) importCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "import", Short: "take over what other programs know, or another postern",
		Long: "Each command says what was taken and what was not. What postern knows itself is never known less\n" +
			"afterwards, and the same again does no harm. docs/moving.md goes through it program by program.",
		Args: cobra.NoArgs,
	}
	cmd.AddCommand(
		c.importPostgreyCommand(), c.importSqlgreyCommand(), c.importMilterGreylistCommand(), c.importVerifyCommand(),
		c.importPostwhiteCommand(), c.importRBLCommand(), c.importStateCommand(),
	)
	return cmd
}

// counted is a line of a report.
type counted struct {
	n    int
	text string
}

// writeCounts writes the lines that count something.
func writeCounts(w io.Writer, rows []counted) {
	for _, row := range rows {
		if row.n > 0 {
			fmt.Fprintf(w, "%8d  %s\n", row.n, row.text)
		}
	}
}

// berkeley is the magic of a Berkeley DB file, at byte 12: btree and hash, in
// either order of bytes.
var berkeley = [][]byte{{0x62, 0x31, 0x05, 0x00}, {0x00, 0x05, 0x31, 0x62}, {0x61, 0x15, 0x06, 0x00}, {0x00, 0x06, 0x15, 0x61}}

// sqliteMagic begins an SQLite file.
const sqliteMagic = "SQLite format 3\x00"

// openDump opens a file, or what a program prints of it when it is a database
// that only that can read.
func openDump(ctx context.Context, name string, stdin io.Reader) (io.Reader, func() error, error) {
	if name == "-" {
		return stdin, func() error { return nil }, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, nil, err
	}
	in := bufio.NewReader(f)
	head, _ := in.Peek(16)
	var tries [][]string
	hint := ""
	switch {
	case len(head) == 16 && containsBytes(berkeley, head[12:]):
		// Through the environment, if there is one, since changes may be in its log.
		for _, program := range []string{"db_dump", "db5.3_dump"} {
			if _, err := os.Stat(filepath.Join(filepath.Dir(name), "__db.001")); err == nil {
				tries = append(tries, []string{program, "-p", "-h", filepath.Dir(name), filepath.Base(name)})
			} else {
				tries = append(tries, []string{program, "-p", name})
			}
		}
		hint = "a Berkeley DB file, which db_dump reads (Debian: db-util): db_dump -p FILE | postern import postgrey -"
	case string(head) == sqliteMagic:
		tries = [][]string{{"sqlite3", "-readonly", name, ".dump"}}
		hint = "an SQLite file, which sqlite3 reads (Debian: sqlite3): sqlite3 FILE .dump | postern import sqlgrey -"
	default:
		return in, f.Close, nil
	}
	_ = f.Close() // the program opens it
	for _, try := range tries {
		program, err := exec.LookPath(try[0])
		if err != nil {
			continue
		}
		run := exec.CommandContext(ctx, program, try[1:]...)
		var said bytes.Buffer
		run.Stderr = &said
		out, err := run.StdoutPipe()
		if err == nil {
			err = run.Start()
		}
		if err != nil {
			return nil, nil, err
		}
		return out, func() error {
			_, _ = io.Copy(io.Discard, out) // what the reader has left
			if err := run.Wait(); err != nil {
				return fmt.Errorf("%s: %w: %s", try[0], err, bytes.TrimSpace(said.Bytes()))
			}
			return nil
		}, nil
	}
	return nil, nil, fmt.Errorf("%s is %s", name, hint)
}

func containsBytes(all [][]byte, b []byte) bool {
	for _, x := range all {
		if bytes.Equal(x, b) {
			return true
		}
	}
	return false
}

// readDump calls read with the content of a file, see [openDump].
func readDump(cmd *cobra.Command, name string, read func(io.Reader) error) error {
	in, end, err := openDump(cmd.Context(), name, cmd.InOrStdin())
	if err != nil {
		return err
	}
	err = read(in)
	if failed := end(); failed != nil { // why it ended early
		err = failed
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (c *cli) importPostwhiteCommand() *cobra.Command {
	skip := "greylist"
	cmd := &cobra.Command{
		Use: "postwhite FILE", Short: "print postwhite's networks as an allow list",
		Long: "FILE is postscreen_spf_whitelist.cidr or another cidr table of networks and permit; - for standard input.\n" +
			"Print it into a file and name that in allow of [access]. Lists of [provider] that refresh themselves from the\n" +
			"SPF records are the better way: docs/providers.md.",
		Example: "  postern import postwhite /etc/postfix/postscreen_spf_whitelist.cidr >/etc/postern/postwhite.list",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var list *moving.Networks
			err := readDump(cmd, args[0], func(in io.Reader) (err error) {
				list, err = moving.Postwhite(in)
				return err
			})
			if err != nil {
				return err
			}
			w := bufio.NewWriter(cmd.OutOrStdout())
			fmt.Fprintln(w, "# From a table of postwhite; an entry exempts from what skip= names.")
			for _, n := range list.Permitted {
				fmt.Fprintf(w, "%s skip=%s\n", n, skip)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%d networks\n", len(list.Permitted))
			for _, l := range list.Left {
				fmt.Fprintln(cmd.ErrOrStderr(), "left out:", adminapi.Printable(l))
			}
			return w.Flush()
		},
	}
	cmd.Flags().StringVar(&skip, "skip", skip, "the checks from which the networks are exempt, with commas")
	return cmd
}

func (c *cli) importRBLCommand() *cobra.Command {
	var files postfixFiles
	cmd := &cobra.Command{
		Use: "postfix-rbl", Short: "print the DNS lists that Postfix asks as a section [rbl]",
		Long: "Reads reject_rbl_client and its like, permit_dnswl_client, and postscreen_dnsbl_sites with weights and\n" +
			"threshold, from postconf or from files with what it prints. What main.cf is to lose then goes to standard error.",
		Example: "  postern import postfix-rbl >/etc/postern/conf.d/rbl.toml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := files.read(cmd)
			if err != nil {
				return err
			}
			lists := s.DNSLists()
			if c.json {
				return writeJSON(cmd.OutOrStdout(), lists)
			}
			if len(lists.Lists) == 0 {
				return errors.New("Postfix asks no DNS list")
			}
			fmt.Fprint(cmd.OutOrStdout(), lists.TOML())
			for _, r := range lists.Remove {
				fmt.Fprintln(cmd.ErrOrStderr(), "take out of Postfix:", adminapi.Printable(r))
			}
			for _, l := range lists.Left {
				fmt.Fprintln(cmd.ErrOrStderr(), "not the same:", adminapi.Printable(l))
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&files.dir, "config-dir", "", "Postfix's configuration directory (default: that of postconf)")
	cmd.Flags().StringVar(&files.main, "main", "", "file with what `postconf -n` printed")
	cmd.Flags().StringVar(&files.master, "master", "", "file with what `postconf -M` printed")
	return cmd
}

// stateHead is the first line of exported state.
type stateHead struct {
	State   string    `json:"postern_state"`
	Version int       `json:"version"`
	Host    string    `json:"host,omitempty"`
	Made    time.Time `json:"made"`
}

const stateVersion = 1

func (c *cli) exportCommand() *cobra.Command {
	return &cobra.Command{
		Use: "export", Short: "print the daemon's state as lines of JSON, for another postern or another store",
		Long: "Triplets, credit and who waits, recipients, correspondents, limits and the fleet's documents; leases and the\n" +
			"journal are not part of it. It holds addresses of your correspondents: keep it as you keep mail logs.",
		Example: "  postern export >state.jsonl",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			w := bufio.NewWriterSize(cmd.OutOrStdout(), 64<<10)
			enc := json.NewEncoder(w)
			enc.SetEscapeHTML(false)
			host, _ := os.Hostname() // it is only told
			if err := enc.Encode(stateHead{"postern", stateVersion, host, time.Now().UTC()}); err != nil {
				return err
			}
			p := startProgress(cmd, "records", 0)
			var failed error
			err = store.Admin{Client: cl}.Export(cmd.Context(), func(it store.Item) bool {
				p.add(1)
				failed = enc.Encode(it)
				return failed == nil
			})
			p.finish()
			return errors.Join(err, failed, w.Flush())
		},
	}
}

func (c *cli) importStateCommand() *cobra.Command {
	return &cobra.Command{
		Use: "postern FILE", Short: "the state of another postern, as `postern export` has printed it",
		Long: "The daemon that takes it runs with the store that it is to be in, embedded or Redis. - stands for standard\n" +
			"input. Greylisting's records are merged, of other values those are taken for which there is none.",
		Example: "  postern export >state.jsonl   # with store.kind = \"embedded\"\n  postern import postern state.jsonl   # after a restart with store.kind = \"redis\"",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			var out store.Imported
			p := startProgress(cmd, "records", 0)
			err = readDump(cmd, args[0], func(in io.Reader) error {
				return readState(in, func(items []store.Item) error {
					one, err := store.Admin{Client: cl}.Import(cmd.Context(), items)
					out.Add(one)
					p.add(len(items))
					return err
				})
			})
			p.finish()
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), out, func(w io.Writer) {
				g, v := &out.Greylist, &out.Values
				fmt.Fprintf(w, "greylisting: %d taken, %d known already, %d whose time is over\n", g.Taken, g.Known, g.Old)
				fmt.Fprintf(w, "other values: %d taken, %d known already, %d whose time is over\n", v.Taken, v.Known, v.Old)
			})
		},
	}
}

// maxStateLine is the most bytes of a line of exported state: a document of a
// fleet is the longest.
const maxStateLine = 8 << 20

// readState reads exported state and hands it to take in batches.
func readState(in io.Reader, take func([]store.Item) error) error {
	sc := bufio.NewScanner(in)
	sc.Buffer(make([]byte, 64<<10), maxStateLine)
	n := 0
	var batch []store.Item
	size := 0
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		err := take(batch)
		batch, size = batch[:0], 0
		return err
	}
	for sc.Scan() {
		n++
		if n == 1 {
			var head stateHead
			if err := json.Unmarshal(sc.Bytes(), &head); err != nil || head.State != "postern" {
				return errors.New(`line 1: not what "postern export" prints`)
			}
			if head.Version > stateVersion {
				return fmt.Errorf("line 1: written by a newer version of postern (%d, this one knows %d)", head.Version, stateVersion)
			}
			continue
		}
		var it store.Item
		dec := json.NewDecoder(bytes.NewReader(sc.Bytes()))
		dec.DisallowUnknownFields()
		err := dec.Decode(&it)
		if err == nil {
			if _, e := dec.Token(); !errors.Is(e, io.EOF) {
				err = errors.New("something follows its JSON value")
			}
		}
		if syntax := (*json.SyntaxError)(nil); errors.As(err, &syntax) {
			return fmt.Errorf("line %d, character %d: %w", n, syntax.Offset, err)
		}
		if err == nil {
			err = it.Check()
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		it.Encode()
		batch = append(batch, it)
		size += len(sc.Bytes())
		if len(batch) == store.MaxItems || size > maxStateLine {
			if err := flush(); err != nil {
				return fmt.Errorf("at line %d: %w", n, err)
			}
		}
	}
	if err := sc.Err(); err != nil {
		return fmt.Errorf("line %d: %w", n+1, err)
	}
	if n == 0 {
		return errors.New("empty: the line with which an export begins is missing")
	}
	return flush()
}
