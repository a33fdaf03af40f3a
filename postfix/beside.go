package postfix

import "strings"

// Beside is what Postfix can do against floods and bots by itself, as comments
// for main.cf and master.cf: a pause before the greeting and limits by client, with the
// lines of master.cf. What is there already is left out.
func Beside(s *Setup) string {
	var b strings.Builder
	chroot := "n"
	screened := false
	for _, of := range s.Services {
		screened = screened || strings.HasPrefix(of.Command, "postscreen")
	}
	if services := s.SMTPD(); len(services) == 0 || chrooted(services) {
		chroot = "y"
	}
	if !screened {
		b.WriteString(`
# Beside postern, where you want it: bots do not wait for the greeting. In master.cf, in place of the line "smtp inet ... smtpd":
#   smtp      inet  n       -       ` + chroot + `       -       1       postscreen
#   smtpd     pass  -       -       ` + chroot + `       -       -       smtpd
#   dnsblog   unix  -       -       ` + chroot + `       -       0       dnsblog
#   tlsproxy  unix  -       -       ` + chroot + `       -       0       tlsproxy
# and in main.cf
#   postscreen_greet_action = enforce
#   postscreen_access_list = permit_mynetworks
`)
	}
	var limits strings.Builder
	for _, l := range [][2]string{
		{"smtpd_client_connection_count_limit", "20"}, {"smtpd_client_connection_rate_limit", "60"}, {"smtpd_client_message_rate_limit", "100"}, {"smtpd_client_auth_rate_limit", "20"},
	} {
		if v, set := s.Main[l[0]]; !set || v == "" {
			limits.WriteString("#   " + l[0] + " = " + l[1] + "\n")
		}
	}
	if limits.Len() > 0 {
		b.WriteString("\n# Floods that end before anybody is asked: by client, connections at once, and others in a minute (anvil_rate_time_unit). Finer ones: [limit] of postern.toml.\n" + limits.String())
	}
	return b.String()
}
