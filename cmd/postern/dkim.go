package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"postern/config"
	"postern/dkim"
	"postern/internal/adminapi"
	"postern/policy"
)

func (c *cli) dkimCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "dkim", Short: "signing keys: make them, publish them, change them",
		Long: "`new`, `dns`, `rotate` and `test` read the configuration and need no daemon; `check` has the running daemon ask the DNS.",
		Args: cobra.NoArgs,
	}
	cmd.AddCommand(c.dkimNew(), c.dkimDNS(), c.dkimCheck(), c.dkimRotate(), c.dkimTest())
	return cmd
}

// owner returns whose a key file is to be: with root, the daemon's.
func owner(name string) (uid, gid int, err error) {
	if os.Geteuid() != 0 && name == "" {
		return -1, -1, nil
	}
	asked := name != ""
	if !asked {
		name = "postern"
	}
	u, err := user.Lookup(name)
	if err != nil {
		if !asked {
			return -1, -1, nil // the daemon is another user's here
		}
		return 0, 0, err
	}
	if uid, err = strconv.Atoi(u.Uid); err == nil {
		gid, err = strconv.Atoi(u.Gid)
	}
	return uid, gid, err
}

func (c *cli) dkimNew() *cobra.Command {
	var n dkim.NewKey
	var of string
	cmd := &cobra.Command{
		Use: "new DOMAIN", Short: "make a key, and say what to configure and to publish",
		Long: "Writes a private key to DOMAIN.SELECTOR.pem, mode 0600, in the directory dkim beside the configuration. A file is never\n" +
			"replaced. As root, the file belongs to the user postern, where there is one.",
		Example: "  postern dkim new example.org\n" +
			"  postern dkim new example.org --ed25519\n" +
			"  postern dkim new example.org --selector s2026b --bits 3072",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			n.Domain = args[0]
			if n.Selector == "" {
				n.Selector = dkim.NextSelector(nil, n.Ed25519, time.Now())
			}
			if n.Directory == "" {
				n.Directory = filepath.Join(filepath.Dir(c.config), "dkim")
			}
			if n.Ed25519 && cmd.Flags().Changed("bits") {
				return errors.New("--bits is for RSA: an Ed25519 key has one length")
			}
			if n.UID, n.GID, err = owner(of); err != nil {
				return err
			}
			k, err := n.Make()
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), k, func(w io.Writer) {
				fmt.Fprintf(w, "%s is made. Publish its record:\n\n", k.File)
				writeKeyRecord(w, &k)
				fmt.Fprintf(w, "\nConfigure it, under [dkim] with mode = \"enforce\":\n\n%s\nthen `postern reload`, and `postern dkim check %s`.\n", k.Settings(true), k.Domain)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&n.Selector, "selector", "", "its name in the DNS (default s and the year, then a letter)")
	f.BoolVar(&n.Ed25519, "ed25519", false, "an Ed25519 key (RFC 8463), which is to sign beside an RSA key")
	f.IntVar(&n.Bits, "bits", 2048, "length of an RSA key: 1024 to 4096")
	f.StringVar(&n.Directory, "dir", "", "where the file goes (default: dkim beside the configuration)")
	f.StringVar(&of, "owner", "", "user whom the file belongs to")
	return cmd
}

// writeKeyRecord writes a record for those who have a zone file, and for those who
// fill in a form.
func writeKeyRecord(w io.Writer, k *dkim.KeyReport) {
	fmt.Fprintln(w, k.Line())
	fmt.Fprintf(w, "\n  name   %s\n  type   TXT\n  value  %s\n", k.Name, k.Record)
	if n := len(dkim.Strings(k.Record)); n > 1 {
		fmt.Fprintf(w, "  (%d octets: where a form wants strings of at most 255, the %d of the line above, without a blank between them)\n", len(k.Record), n)
	}
}

func (c *cli) dkimDNS() *cobra.Command {
	var selector string
	cmd := &cobra.Command{
		Use: "dns [DOMAIN]", Short: "the records that the configured keys need", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, _, err := config.Load(c.config)
			if err != nil {
				return err
			}
			keys, err := dkim.Keys(cfg.DKIM, strings.Join(args, ""))
			if err != nil {
				return err
			}
			shown := keys[:0]
			for _, k := range keys {
				if k.Name != "" && (selector == "" || k.Selector == selector) {
					shown = append(shown, k)
				}
			}
			if len(shown) == 0 {
				return fmt.Errorf("there is no key of the selector %q", selector)
			}
			return c.show(cmd.OutOrStdout(), shown, func(w io.Writer) {
				for i := range shown {
					if i > 0 {
						fmt.Fprintln(w)
					}
					writeKeyRecord(w, &shown[i])
				}
			})
		},
	}
	cmd.Flags().StringVar(&selector, "selector", "", "only this one")
	return cmd
}

func (c *cli) dkimCheck() *cobra.Command {
	return &cobra.Command{
		Use: "check [DOMAIN]", Short: "is the key that signs the one in the DNS?",
		Long: "Has the running daemon ask the DNS for the record of each key, says what is wrong, and what a change of keys needs next. The\n" +
			"status is 1 when the record of a key that should sign is not good, or no key signs.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			out, err := dkim.Admin{Client: cl}.Check(cmd.Context(), dkim.Question{Domain: strings.Join(args, "")})
			if err != nil {
				return err
			}
			if err := c.show(cmd.OutOrStdout(), out, func(w io.Writer) { writeDKIM(w, out) }); err != nil {
				return err
			}
			for _, r := range out {
				if len(r.Faults) > 0 {
					return errSaid
				}
			}
			return nil
		},
	}
}

func writeDKIM(w io.Writer, reports []dkim.Report) {
	for i := range reports {
		r := &reports[i]
		domain := r.Domain
		if domain == "" {
			domain = "any domain (%): its records are not asked for"
		}
		fmt.Fprintln(w, adminapi.Printable(domain))
		tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		for _, k := range r.Keys {
			signs := "does not sign"
			if k.Signs {
				signs = "signs"
			}
			span := ""
			if !k.From.IsZero() {
				span += " from " + dkim.Date{Time: k.From}.String()
			}
			if !k.To.IsZero() {
				span += " to " + dkim.Date{Time: k.To}.String()
			}
			fmt.Fprintf(tw, "  %s\t%s\t%s\t%s\t%s\n", k.Selector, k.Kind(), k.State.Standing, signs+span, adminapi.Printable(strings.Join(append(notEmpty(k.State.Problem), k.State.Notes...), "; ")))
		}
		_ = tw.Flush() // errors show with the next line
		for _, f := range r.Faults {
			fmt.Fprintf(w, "  FAULT %s\n", adminapi.Printable(f))
		}
		for _, n := range r.Next {
			fmt.Fprintf(w, "  next: %s\n", adminapi.Printable(n))
		}
	}
}

func notEmpty(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

func (c *cli) dkimRotate() *cobra.Command {
	var n dkim.NewKey
	var selector, from, of string
	cmd := &cobra.Command{
		Use: "rotate DOMAIN", Short: "prepare the key that follows, and say when it goes live",
		Long: "Makes the next key of each kind that signs for the domain now, and says what to configure and to publish. Nothing changes before\n" +
			"that is done: the new key takes over at --from, if its record is good by then, and the old one stays behind it for two weeks.",
		Example: "  postern dkim rotate example.org\n" +
			"  postern dkim rotate example.org --from 2027-01-04",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			cfg, _, err := config.Load(c.config)
			if err != nil {
				return err
			}
			at := time.Now().UTC().Truncate(24 * time.Hour).Add(7 * 24 * time.Hour)
			if from != "" {
				var d dkim.Date
				if err := d.UnmarshalText([]byte(from)); err != nil {
					return fmt.Errorf("--from: %w", err)
				}
				if at = d.Time; at.Before(time.Now()) {
					return fmt.Errorf("--from %s is over: the record must be seen everywhere before the key signs", from)
				}
			}
			if n.UID, n.GID, err = owner(of); err != nil {
				return err
			}
			r, err := dkim.Rotate(cfg.DKIM, args[0], selector, at, n)
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), r, func(w io.Writer) { writeRotation(w, &r) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&selector, "selector", "", "name of the new key (default: the next letter of the year)")
	f.StringVar(&from, "from", "", "when it takes over, as 2027-01-04 (default: in a week)")
	f.IntVar(&n.Bits, "bits", 0, "length of an RSA key (default: as before, at least 2048)")
	f.StringVar(&n.Directory, "dir", "", "where the file goes (default: where the old one is)")
	f.StringVar(&of, "owner", "", "user whom the file belongs to")
	return cmd
}

func writeRotation(w io.Writer, r *dkim.Rotation) {
	fmt.Fprintf(w, "1. Publish now:\n\n")
	for i := range r.New {
		writeKeyRecord(w, &r.New[i])
		fmt.Fprintln(w)
	}
	fmt.Fprintf(w, "2. Configure, under [[dkim.domain]] of %s:\n\n", r.New[0].Domain)
	for i := range r.Old {
		fmt.Fprintln(w, r.Old[i].Settings(false))
	}
	for i := range r.New {
		fmt.Fprintln(w, r.New[i].Settings(false))
	}
	fmt.Fprintf(w, "3. postern reload; postern dkim check %s\n\n", r.New[0].Domain)
	for i := range r.New {
		fmt.Fprintf(w, "%s takes over from %s at %s, if its record is good; until %s the old key signs when it is not.\n",
			r.New[i].Selector, r.Old[i].Selector, dkim.Date{Time: r.New[i].From}, dkim.Date{Time: r.Old[i].To})
	}
	fmt.Fprintf(w, "The old record stays until %s: mail on its way is verified with it.\n", dkim.Date{Time: r.Revoke})
}

func (c *cli) dkimTest() *cobra.Command {
	var login, client, chain string
	cmd := &cobra.Command{
		Use: "test FILE.eml", Short: "would this message be signed, and how?",
		Long: "Signs a message as the daemon would, if no rule changed it and the records of all keys were good; - for standard input.",
		Example: "  postern dkim test mail.eml --login ann\n" +
			"  postern dkim test mail.eml --client 127.0.0.1",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			cfg, _, err := config.Load(c.config)
			if err != nil {
				return err
			}
			req := &policy.Request{Time: time.Now(), Stage: policy.StageData, Door: "explain", JudgedBy: chain, SASL: policy.SASL{Username: login}}
			if client != "" {
				if req.Client.Addr, err = parseAddr(client); err != nil {
					return err
				}
			}
			text, err := readInput(cmd, args[0])
			if err != nil {
				return err
			}
			r, err := dkim.Try(cmd.Context(), cfg.DKIM, req, text)
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), r, func(w io.Writer) {
				fmt.Fprintln(w, r.Whose)
				if r.Reason != "" {
					fmt.Fprintf(w, "=> %s %s\n", r.Reason, adminapi.Printable(r.Detail))
				}
				for _, f := range r.Fields {
					fmt.Fprintln(w, f)
				}
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&login, "login", "", "as whom the client has logged in")
	f.StringVar(&client, "client", "", "IP address of the client")
	f.StringVar(&chain, "chain", "inbound", "the chain that judges it")
	return cmd
}
