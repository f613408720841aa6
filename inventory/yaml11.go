package inventory

import (
	"regexp"
	"strings"
)

// What YAML 1.1 makes of an unquoted word. cloud-init reads its user data with
// PyYAML, which follows 1.1: "no" is a boolean, 0123 octal, and the hardware
// address 52:54:00:00:00:05 a number in base 60.
var yaml11 = []struct {
	what    string
	grammar *regexp.Regexp
}{
	{"nothing", regexp.MustCompile(`^(~|null|Null|NULL|)$`)},
	{"a boolean", regexp.MustCompile(`^(y|Y|yes|Yes|YES|n|N|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$`)},
	{"a number", regexp.MustCompile(`^[-+]?(0[bB][0-1_]+|0[xX][0-9a-fA-F_]+|0[oO][0-7_]+|[0-9][0-9_]*|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)$`)},
	{"a number", regexp.MustCompile(`^[-+]?(\.[0-9]|[0-9])[0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?$`)},
	{"a number", regexp.MustCompile(`^([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$`)},
	{"a date", regexp.MustCompile(`^[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt ].*)?$`)},
	{"a merge", regexp.MustCompile(`^(<<|=)$`)},
}

// readAs says what other than text an unquoted scalar is read as; "" is text.
func readAs(s string) string {
	// Readers drop the underscores of numbers before or after they look.
	bare := strings.ReplaceAll(s, "_", "")
	for _, t := range yaml11 {
		if t.grammar.MatchString(s) || bare != s && bare != "" && t.what == "a number" && t.grammar.MatchString(bare) {
			return t.what
		}
	}
	return ""
}
