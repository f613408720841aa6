package inventory

import (
	"cmp"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Disk hints have Ironic's names and operators (its root device hints, whose
// operators are those of oslo.utils' specs_matcher):
//
//	numbers  =  (at least)  ==  !=  <  <=  >  >=
//	text     s==  s!=  s<  s<=  s>  s>=  <in> (contains)  <all-in> (contains every word)
//	both     <or> A <or> B (equals one of them)
//
// Without an operator the value must be equal. Text is compared in lower case.
// size is in GiB, with fractions: a "500 GB" disk has 465.76, so == rarely fits
// and minSize, maxSize or an operator is what is wanted. A hint about something
// that a disk does not tell does not fit it, != included.

// hint is one parsed hint.
type hint struct {
	name    string
	op      string
	values  []string  // lower case; for text
	numbers []float64 // for size, GiB
	yes     bool      // for rotational
}

// hintNames are the hints in the order in which they are explained.
var hintNames = []string{
	"model", "vendor", "serial", "wwn", "wwn_with_extension", "wwn_vendor_extension",
	"size", "rotational", "hctl", "by_path", "name",
}

var (
	hintOperator = regexp.MustCompile(`^(<all-in>|<in>|<or>|s==|s!=|s<=|s>=|s<|s>|==|!=|<=|>=|=|<|>)\s*`)
	hintBrackets = regexp.MustCompile(`^<[a-z-]*>`)
	// What looks like an operator and is none would otherwise be compared as text.
	hintNoOperator = regexp.MustCompile(`^(<[a-z-]*>|s=|[=!<>~]+)`)
	hctlGrammar    = regexp.MustCompile(`^[0-9]+:[0-9]+:[0-9]+:[0-9]+$`)
)

const (
	textOperators   = "s==, s!=, s<, s<=, s>, s>=, <in>, <all-in> or <or>"
	numberOperators = "=, ==, !=, <, <=, >, >= or <or>"
)

func operatorsOf(name string) string {
	if name == "size" {
		return numberOperators
	}
	return textOperators
}

// parseHint reads the value of one hint.
func parseHint(name, expression string) (hint, error) {
	if !contains(hintNames, name) {
		return hint{}, fmt.Errorf("unknown hint %q: %s", name, didYouMean(name, hintNames))
	}
	h := hint{name: name}
	rest := normal(expression)
	if name == "rotational" {
		switch rest {
		case "true", "yes", "on", "1", "t", "y":
			h.yes = true
		case "false", "no", "off", "0", "f", "n":
		default:
			return hint{}, fmt.Errorf("rotational is %q: want true or false, without operator", expression)
		}
		return h, nil
	}
	if m := hintBrackets.FindString(rest); m != "" && m != "<in>" && m != "<all-in>" && m != "<or>" {
		return hint{}, fmt.Errorf("%s is %q: unknown operator %q, want %s", name, expression, m, operatorsOf(name))
	}
	if m := hintOperator.FindString(rest); m != "" {
		h.op, rest = strings.TrimSpace(m), rest[len(m):]
	}
	if hintNoOperator.MatchString(rest) {
		return hint{}, fmt.Errorf("%s is %q: unknown operator %q, want %s", name, expression, hintNoOperator.FindString(rest), operatorsOf(name))
	}
	parts := []string{rest}
	switch h.op {
	case "<or>":
		parts = strings.Split(rest, "<or>")
	case "<all-in>":
		parts = strings.Fields(rest)
	}
	for _, p := range parts {
		p = strings.TrimSpace(p)
		if p == "" {
			return hint{}, fmt.Errorf("%s is %q: a value is missing", name, expression)
		}
		h.values = append(h.values, p)
	}
	if len(h.values) == 0 {
		return hint{}, fmt.Errorf("%s is %q: a value is missing", name, expression)
	}
	if name == "size" {
		return h.asSize(expression)
	}
	switch h.op {
	case "":
		h.op = "s=="
	case "=", "==", "!=", "<", "<=", ">", ">=":
		return hint{}, fmt.Errorf("%s is %q: %q compares numbers, want %s", name, expression, h.op, textOperators)
	}
	return h, h.possible(expression)
}

// normal is how text is compared: lower case, runs of spaces as one (models are
// padded with them).
func normal(s string) string { return strings.ToLower(strings.Join(strings.Fields(s), " ")) }

func (h hint) asSize(expression string) (hint, error) {
	switch h.op {
	case "":
		h.op = "=="
	case "=", "==", "!=", "<", "<=", ">", ">=", "<or>":
	default:
		return hint{}, fmt.Errorf("size is %q: %q compares text, want %s", expression, h.op, numberOperators)
	}
	for _, v := range h.values {
		n, err := strconv.ParseFloat(v, 64)
		if err != nil || math.IsNaN(n) || math.IsInf(n, 0) || strings.ContainsAny(v, "xp_") {
			return hint{}, fmt.Errorf("size is %q: want a number of GiB such as \">= 100\", or use minSize and maxSize with a unit", expression)
		}
		if n <= 0 || n > 1<<23 {
			return hint{}, fmt.Errorf("size is %q: want more than 0 and at most 8388608 GiB", expression)
		}
		h.numbers = append(h.numbers, n)
	}
	return h, nil
}

// possible refuses what no disk can be equal to.
func (h hint) possible(expression string) error {
	if h.op != "s==" && h.op != "<or>" {
		return nil
	}
	for _, v := range h.values {
		switch {
		case h.name == "hctl" && !hctlGrammar.MatchString(v):
			return fmt.Errorf("hctl is %q: no disk is there, want host:channel:target:lun such as 0:0:1:0", expression)
		case h.name == "name" && !strings.HasPrefix(v, "/dev/"):
			return fmt.Errorf("name is %q: no disk has that name, want one such as /dev/sda", expression)
		case h.name == "by_path" && !strings.HasPrefix(v, "/dev/disk/by-path/"):
			return fmt.Errorf("by_path is %q: no disk is there, want one such as /dev/disk/by-path/pci-0000:00:1f.2-ata-1", expression)
		}
	}
	return nil
}

const gib = 1 << 30

// bounds are the sizes in bytes that a size hint leaves, as a closed range;
// enough to find what contradicts minSize and maxSize.
func (h hint) bounds() (low, high float64) {
	low, high = 0, math.MaxInt64
	n := h.numbers[0] * gib
	switch h.op {
	case "=", ">=":
		low = n
	case ">":
		low = n + 1
	case "<=":
		high = n
	case "<":
		high = n - 1
	case "==", "<or>":
		low, high = slices.Min(h.numbers)*gib, slices.Max(h.numbers)*gib
	}
	return low, high
}

// fits says why the disk is not what the hint wants; "" it is.
func (h hint) fits(d DiskFacts) string {
	switch h.name {
	case "rotational":
		if d.Rotational != h.yes {
			return fmt.Sprintf("rotational is %t", d.Rotational)
		}
		return ""
	case "size":
		if d.Size <= 0 {
			return "its size is not known"
		}
		if !h.fitsNumber(float64(d.Size) / gib) {
			return fmt.Sprintf("size is %.2f GiB", float64(d.Size)/gib)
		}
		return ""
	}
	value := h.of(d)
	if value == "" {
		return "it tells no " + h.name
	}
	if !h.fitsText(normal(value)) {
		return fmt.Sprintf("%s is %q", h.name, value)
	}
	return ""
}

func (h hint) of(d DiskFacts) string {
	switch h.name {
	case "model":
		return d.Model
	case "vendor":
		return d.Vendor
	case "serial":
		return d.Serial
	case "wwn":
		return d.WWN
	case "wwn_with_extension":
		return d.WWNWithExtension
	case "wwn_vendor_extension":
		return d.WWNVendorExtension
	case "hctl":
		return d.HCTL
	case "by_path":
		return d.ByPath
	case "name":
		return d.Name
	}
	return ""
}

func (h hint) fitsNumber(v float64) bool {
	n := h.numbers[0]
	switch h.op {
	case "=", ">=":
		return v >= n
	case "==":
		return v == n
	case "!=":
		return v != n
	case "<":
		return v < n
	case "<=":
		return v <= n
	case ">":
		return v > n
	case "<or>":
		return slices.Contains(h.numbers, v)
	}
	return false
}

func (h hint) fitsText(v string) bool {
	want := h.values[0]
	switch h.op {
	case "s==":
		return v == want
	case "s!=":
		return v != want
	case "s<":
		return v < want
	case "s<=":
		return v <= want
	case "s>":
		return v > want
	case "s>=":
		return v >= want
	case "<in>":
		return strings.Contains(v, want)
	case "<all-in>":
		for _, w := range h.values {
			if !strings.Contains(v, w) {
				return false
			}
		}
		return true
	case "<or>":
		return slices.Contains(h.values, v)
	}
	return false
}

// parse reads all hints, in the order of hintNames.
func (sel DiskSelect) parse() ([]hint, error) {
	for name := range sel.Hints {
		if !contains(hintNames, name) {
			return nil, fmt.Errorf("unknown hint %q: %s", name, didYouMean(name, hintNames))
		}
	}
	var hints []hint
	for _, name := range hintNames {
		expression, ok := sel.Hints[name]
		if !ok {
			continue
		}
		h, err := parseHint(name, expression)
		if err != nil {
			return nil, err
		}
		hints = append(hints, h)
	}
	return hints, nil
}

// buildSelect reads the hints of a Definition and refuses what fits no disk.
func (s scope) buildSelect(raw rawSelect) DiskSelect {
	const at = "spec.disk.select."
	var sel DiskSelect
	size := func(t text, field string, into *int64) {
		if !t.given() {
			return
		}
		v, err := ParseSize(t.V)
		if err != nil {
			s.fail(t.Line, at+field, err)
			return
		}
		*into = v
	}
	size(raw.MinSize, "minSize", &sel.MinSize)
	size(raw.MaxSize, "maxSize", &sel.MaxSize)
	for name, t := range map[string]scalar{
		"model": raw.Model, "vendor": raw.Vendor, "serial": raw.Serial, "wwn": raw.WWN,
		"wwn_with_extension": raw.WWNWithExtension, "wwn_vendor_extension": raw.WWNVendorExtension,
		"size": raw.Size, "rotational": raw.Rotational, "hctl": raw.HCTL, "by_path": raw.ByPath, "name": raw.Name,
	} {
		if !t.given() {
			continue
		}
		h, err := parseHint(name, t.V)
		if err != nil {
			s.fail(t.Line, at+name, err)
			continue
		}
		if sel.Hints == nil {
			sel.Hints = map[string]string{}
		}
		// One spelling, so that the same hint gives the same generation.
		sel.Hints[name] = strings.Join(strings.Fields(t.V), " ")
		if name == "rotational" {
			sel.Hints[name] = strconv.FormatBool(h.yes)
		}
	}
	if sel.MaxSize > 0 && sel.MinSize > sel.MaxSize {
		s.problem(raw.MaxSize.Line, at+"maxSize", fmt.Sprintf("no disk is at least %s and at most %s", raw.MinSize.V, raw.MaxSize.V), "swap or remove one")
		return sel
	}
	if expression, ok := sel.Hints["size"]; ok {
		h, _ := parseHint("size", expression)
		low, high := h.bounds()
		if low > high || float64(sel.MinSize) > high || sel.MaxSize > 0 && low > float64(sel.MaxSize) {
			bounds := strings.TrimSpace(raw.MinSize.V + " " + raw.MaxSize.V)
			s.problem(raw.Size.Line, at+"size", fmt.Sprintf("no disk has a size %q GiB and fits minSize or maxSize (%s)", expression, bounds), "use one or the other")
		}
	}
	// A WWN with extension is the WWN with the vendor's part behind it.
	wwn, _ := parseHint("wwn", cmp.Or(sel.Hints["wwn"], "-"))
	whole, _ := parseHint("wwn_with_extension", cmp.Or(sel.Hints["wwn_with_extension"], "-"))
	if sel.Hints["wwn"] != "" && sel.Hints["wwn_with_extension"] != "" && wwn.op == "s==" && whole.op == "s==" &&
		!strings.HasPrefix(whole.values[0], wwn.values[0]) {
		s.problem(raw.WWN.Line, at+"wwn", fmt.Sprintf("no disk has the wwn %s and the wwn_with_extension %s", sel.Hints["wwn"], sel.Hints["wwn_with_extension"]), "remove one")
	}
	return sel
}
