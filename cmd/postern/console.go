package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"postern/config"
	"postern/console"
)

func (c *cli) consoleCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "console", Short: "who may log in to the console in a browser", Args: cobra.NoArgs,
		Long: "Names, roles and hashes of passwords are in console.users_file. A running daemon takes a change at once.",
	}
	user := &cobra.Command{Use: "user", Short: "users of the console", Args: cobra.NoArgs}
	user.AddCommand(c.consoleAdd(), c.consoleList(), c.consoleRemove(), c.consolePassword(), c.consoleRole())
	cmd.AddCommand(user, c.consoleTOTP())
	return cmd
}

// usersFile is where the configuration has it. One with faults serves as far as
// it can be read.
func (c *cli) usersFile() string {
	cfg := config.Peek(c.config)
	return cfg.Console.Users(cfg.Store.Path)
}

// newPassword is where a password comes from.
type newPassword struct{ stdin, generate bool }

func (p *newPassword) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&p.stdin, "stdin", false, "read the password from standard input, one line")
	cmd.Flags().BoolVar(&p.generate, "generate", false, "make one, and print it once")
	cmd.MarkFlagsMutuallyExclusive("stdin", "generate")
}

// ask returns a password for a user.
func (p *newPassword) ask(cmd *cobra.Command, name string) (password string, err error) {
	switch {
	case p.generate:
		return console.Generate(), nil
	case p.stdin:
		line, err := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 4096)).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return "", err
		}
		password = strings.TrimRight(line, "\r\n")
	case !term.IsTerminal(int(os.Stdin.Fd())):
		return "", errors.New("there is no terminal to ask for a password: --stdin reads it, --generate makes one")
	default:
		if password, err = hidden(cmd, "Password for "+name+": "); err != nil {
			return "", err
		}
		again, err := hidden(cmd, "Again: ")
		if err != nil {
			return "", err
		}
		if again != password {
			return "", errors.New("that was not the same")
		}
	}
	return password, console.CheckPassword(name, password)
}

func hidden(cmd *cobra.Command, prompt string) (string, error) {
	fmt.Fprint(cmd.ErrOrStderr(), prompt)
	text, err := term.ReadPassword(int(os.Stdin.Fd()))
	fmt.Fprintln(cmd.ErrOrStderr())
	return string(text), err
}

// consoleUser is what the commands say of a user.
type consoleUser struct {
	Name     string `json:"name"`
	Role     string `json:"role"`
	TOTP     bool   `json:"totp"`
	Password string `json:"password,omitempty"` // one that was made
	File     string `json:"file,omitempty"`
}

func (c *cli) showUser(cmd *cobra.Command, u *console.User, what, made string) error {
	out := consoleUser{Name: u.Name, Role: u.Role.String(), TOTP: u.TOTP != "", Password: made, File: c.usersFile()}
	return c.show(cmd.OutOrStdout(), out, func(w io.Writer) {
		fmt.Fprintf(w, "%s (%s) %s %s\n", out.Name, out.Role, what, out.File)
		if made != "" {
			fmt.Fprintf(w, "password: %s\n", made)
		}
	})
}

func (c *cli) consoleAdd() *cobra.Command {
	var password newPassword
	var role string
	cmd := &cobra.Command{
		Use: "add NAME --role ROLE", Short: "add a user", Args: cobra.ExactArgs(1),
		Long: "Roles: view looks at everything but settings and the audit log; operate changes state and runs tests that\n" +
			"reach others; admin has all.",
		Example: "  postern console user add ann --role admin",
		RunE: func(cmd *cobra.Command, args []string) error {
			u := console.User{Name: args[0]}
			if err := errors.Join(console.CheckName(u.Name), u.Role.UnmarshalText([]byte(role))); err != nil {
				return err
			}
			taken := fmt.Errorf("there is a user %s: `postern console user password` and `role` change one", u.Name)
			is := func(o console.User) bool { return o.Name == u.Name }
			if all, err := console.ReadUsers(c.usersFile()); err != nil {
				return err
			} else if slices.ContainsFunc(all, is) {
				return taken // before a password is asked for
			}
			text, err := password.ask(cmd, u.Name)
			if err != nil {
				return err
			}
			u.Password = console.Hash(text)
			err = console.ChangeUsers(c.usersFile(), func(all []console.User) ([]console.User, error) {
				if slices.ContainsFunc(all, is) {
					return nil, taken
				}
				return append(all, u), nil
			})
			if err != nil {
				return err
			}
			if !password.generate {
				text = ""
			}
			return c.showUser(cmd, &u, "was added to", text)
		},
	}
	cmd.Flags().StringVar(&role, "role", "", "view, operate or admin")
	_ = cmd.MarkFlagRequired("role") // it is there
	password.flags(cmd)
	return cmd
}

func (c *cli) consoleList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "list the users", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := console.ReadUsers(c.usersFile())
			if err != nil {
				return err
			}
			out := []consoleUser{}
			for _, u := range all {
				out = append(out, consoleUser{Name: u.Name, Role: u.Role.String(), TOTP: u.TOTP != ""})
			}
			slices.SortFunc(out, func(a, b consoleUser) int { return cmp.Compare(a.Name, b.Name) })
			return c.show(cmd.OutOrStdout(), out, func(w io.Writer) {
				if len(out) == 0 {
					fmt.Fprintf(w, "nobody can log in: %s has no users\n", c.usersFile())
					return
				}
				tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
				fmt.Fprintln(tw, "NAME\tROLE\tONE-TIME PASSWORD")
				for _, u := range out {
					asked := "no"
					if u.TOTP {
						asked = "yes"
					}
					fmt.Fprintf(tw, "%s\t%s\t%s\n", u.Name, u.Role, asked)
				}
				_ = tw.Flush() // the terminal is gone
			})
		},
	}
}

// changeUser changes one user, and returns them as they are then.
func (c *cli) changeUser(name string, change func(*console.User) error) (u console.User, err error) {
	err = console.ChangeUsers(c.usersFile(), func(all []console.User) ([]console.User, error) {
		i := slices.IndexFunc(all, func(o console.User) bool { return o.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no user %s in %s", name, c.usersFile())
		}
		err := change(&all[i])
		u = all[i]
		return all, err
	})
	return u, err
}

func (c *cli) consoleRemove() *cobra.Command {
	return &cobra.Command{
		Use: "remove NAME", Short: "remove a user, whose sessions end", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var gone console.User
			err := console.ChangeUsers(c.usersFile(), func(all []console.User) ([]console.User, error) {
				i := slices.IndexFunc(all, func(o console.User) bool { return o.Name == args[0] })
				if i < 0 {
					return nil, fmt.Errorf("there is no user %s in %s", args[0], c.usersFile())
				}
				gone = all[i]
				return slices.Delete(all, i, i+1), nil
			})
			if err != nil {
				return err
			}
			return c.showUser(cmd, &gone, "was removed from", "")
		},
	}
}

func (c *cli) consolePassword() *cobra.Command {
	var password newPassword
	cmd := &cobra.Command{
		Use: "password NAME", Short: "set a user's password; all sessions of the user end", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			all, err := console.ReadUsers(c.usersFile())
			if err != nil {
				return err
			}
			if !slices.ContainsFunc(all, func(o console.User) bool { return o.Name == args[0] }) {
				return fmt.Errorf("there is no user %s in %s", args[0], c.usersFile())
			}
			text, err := password.ask(cmd, args[0])
			if err != nil {
				return err
			}
			hash := console.Hash(text)
			u, err := c.changeUser(args[0], func(u *console.User) error {
				u.Password = hash
				return nil
			})
			if err != nil {
				return err
			}
			if !password.generate {
				text = ""
			}
			return c.showUser(cmd, &u, "has another password in", text)
		},
	}
	password.flags(cmd)
	return cmd
}

func (c *cli) consoleRole() *cobra.Command {
	return &cobra.Command{
		Use: "role NAME ROLE", Short: "set a user's role: view, operate or admin", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			u, err := c.changeUser(args[0], func(u *console.User) error { return u.Role.UnmarshalText([]byte(args[1])) })
			if err != nil {
				return err
			}
			return c.showUser(cmd, &u, "has another role in", "")
		},
	}
}

func (c *cli) consoleTOTP() *cobra.Command {
	off := false
	cmd := &cobra.Command{
		Use: "totp NAME", Short: "ask a user for one-time passwords, too, or no longer", Args: cobra.ExactArgs(1),
		Long: "Makes a new secret and prints it once, with the link that authenticators take (RFC 6238). From then on\n" +
			"a login asks for the password and a code of six digits. Sessions of the user end.",
		RunE: func(cmd *cobra.Command, args []string) error {
			secret := ""
			if !off {
				secret = console.NewTOTP()
			}
			u, err := c.changeUser(args[0], func(u *console.User) error {
				u.TOTP = secret
				return nil
			})
			if err != nil {
				return err
			}
			if off {
				return c.showUser(cmd, &u, "is no longer asked for one-time passwords:", "")
			}
			link := console.TOTPLink(config.Peek(c.config).Hostname, u.Name, secret)
			return c.show(cmd.OutOrStdout(), map[string]string{"name": u.Name, "secret": secret, "link": link}, func(w io.Writer) {
				fmt.Fprintf(w, "secret: %s\nlink:   %s\n", secret, link)
			})
		},
	}
	cmd.Flags().BoolVar(&off, "off", false, "ask for none any longer")
	return cmd
}
