package testenv

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"recast/inventory"
)

// Fault is one thing that goes wrong with a machine of a lab, as a person names
// it: "hang", or "delay=2s".
type Fault struct {
	Name, Value string
}

func (f Fault) String() string {
	if f.Value == "" {
		return f.Name
	}
	return f.Name + "=" + f.Value
}

// FaultKind is what faults there are.
type FaultKind struct {
	Name string
	// Value is what stands behind "=": DURATION, COUNT, SIZE, PROBABILITY, VLAN, TEXTS, or
	// the words themselves; "" for none.
	Value string
	Text  string
	// Of is "bmc", "redfish" or "ipmi", where the BMC goes wrong, "machine", or "link".
	Of string
	// Once: it happens once, and is no fault that the machine has from then on.
	Once bool

	field []int // in BMCFaults
}

// faultTexts are the fields of BMCFaults by the names that FaultKinds gives them.
// Tests see to it that none is missing.
var faultTexts = map[string]string{
	"ignore-power":     "accepts every power command and does nothing",
	"ignore-shutdown":  "accepts the soft shutdown and does nothing",
	"power-lag":        "tells the old power state for so long after each change",
	"stale-reads":      "tells it so often after each change",
	"ignore-boot":      "accepts every boot override and keeps the old one",
	"lose-boot":        "keeps an override until the next start, which does not see it",
	"keep-boot":        "arms a one-time override again after each start",
	"flip-mode":        "stores the other firmware mode than the one asked for",
	"ignore-efi":       "stores every override as one for BIOS",
	"revert-boot":      "keeps an override for one look at it",
	"boot-expiry":      "ends an override that no power command follows in time",
	"cycle-when-off":   "what becomes of a power cycle then",
	"reject-param3":    "refuses boot option parameter 3",
	"refuse-auth":      "answers every login as if the password were wrong",
	"lock-after":       "refuses every login after so many failed ones",
	"lock-for":         "and does so for so long, not until it restarts",
	"hang":             "answers nothing",
	"busy":             "answers 503, or node busy, after the login",
	"cut-short":        "answers every question with one byte",
	"lose-reply":       "executes a power command and never answers it",
	"lose-every-reply": "does so with all that changes something",
	"lose-in":          "loses packets to the BMC",
	"lose-out":         "loses packets from the BMC",
	"away":             "how long a restart of the BMC takes",
	"ignore-restart":   "accepts a restart of the BMC and goes on",
	"forget-boot":      "drops the override when it restarts",
	"cipher-zero":      "offers cipher suite 0, in which no password is checked",
	"anonymous":        "lets in a user without name and password",
	"old-protocol":     "lets in IPMI 1.5",
	"reject-after":     "executes a change, then answers that it was refused",
	"need-etag":        "refuses a PATCH without If-Match",
	"delay":            "waits before each answer",

	"etag":                       "how resources are versioned",
	"etag-status":                "is the answer to a PATCH without the If-Match that it needs",
	"refuse-if-match-post":       "answers 412 to an action with If-Match",
	"gzip":                       "compresses answers",
	"settings":                   "where the boot override is written",
	"refuse-continuous":          "refuses an override that stays",
	"refuse-partial-boot":        "wants target, enabled and mode together",
	"refuse-unchanged-boot":      "refuses an Enabled that is so already",
	"need-enabled":               "makes Continuous a Once where Enabled is left out",
	"mode-job":                   "changes the firmware mode by a job that waits for the next start",
	"resets":                     "offers these reset types alone",
	"action-info":                "tells the reset types in a resource of their own",
	"accept-same":                "takes a power command that changes nothing",
	"on-refused":                 "answers 409 to On for so long after the machine went off",
	"post":                       "refuses every change for so long after a start",
	"powering-words":             "tells PoweringOn and PoweringOff during power-lag",
	"task":                       "answers changes with a task",
	"task-takes":                 "is how long a task runs",
	"task-hidden":                "answers 404 to a new task for so long",
	"media-only-patch":           "has virtual media without actions",
	"media-need":                 "refuses to insert without these parameters",
	"media-refuse":               "refuses to insert with these parameters",
	"media-eject-lag":            "shows the medium for so long after it was ejected",
	"media-eject-broken":         "answers 500 for so long after it was ejected",
	"login-takes":                "is how long the check of a password takes",
	"workers":                    "serves so many requests at once, the others get 503",
	"new-certificate-at-restart": "has another certificate after each restart",
	"redirect-to":                "answers 308 to all but the root: the same path on this HOST:PORT",
	"redirect-slash":             "answers 308 to a path without a slash at its end",
	"page":                       "tells so many members of a collection at once",
	"holes":                      "leaves these properties out of every resource",
	"numbers-as-text":            "writes every number as a text",
}

// faultWords are the values of the fields that have names.
var faultWords = map[reflect.Type][]string{
	reflect.TypeFor[CycleWhenOff]():    {string(CycleIgnored), string(CycleStarts), string(CycleUnknown)},
	reflect.TypeFor[RedfishETag]():     {string(ETagWeak), string(ETagWeakFalse), string(ETagEmpty), string(ETagNone)},
	reflect.TypeFor[RedfishGzip]():     {string(GzipOffer), string(GzipDemand)},
	reflect.TypeFor[RedfishSettings](): {string(SettingsObject), string(SettingsFuture), string(SettingsDecoy), string(SettingsOrder)},
	reflect.TypeFor[RedfishTask]():     {string(TaskOK), string(TaskFail), string(TaskStuck)},
}

// faultOnly are those of BMCFaults itself that one protocol alone has.
var faultOnly = map[string]string{
	"cycle-when-off": "ipmi", "reject-param3": "ipmi", "cut-short": "ipmi", "lose-in": "ipmi", "lose-out": "ipmi",
	"cipher-zero": "ipmi", "anonymous": "ipmi", "old-protocol": "ipmi",
	"reject-after": "redfish", "need-etag": "redfish",
}

// The faults of machines, of their links, and what BMCs do once.
var faultMachine = []FaultKind{
	{Name: "no-boot", Text: "never asks for anything once it is started"},
	{Name: "disk-gone", Text: "shows no disk from its next start on; a QEMU machine's fails at once"},
	{Name: "disk-size", Value: "SIZE", Text: "shows a disk of this size, if it is larger, from its next start on"},
	{Name: "disk-error", Value: "SIZE", Text: "fails every write beyond this place of its disk"},
	{Name: "disk-read-error", Value: "SIZE", Text: "fails every read beyond this place of its disk"},
	{Name: "power-cut", Value: "SIZE", Once: true, Text: "loses its power once, when it has written so much more"},
	{Name: "reset", Value: "SIZE", Once: true, Text: "is reset once, when it has written so much more"},
	{Name: "restart-hangs", Value: "COUNT", Once: true, Text: "hangs at so many restarts from inside, until it is reset"},
	{Name: "swapped-board", Text: "has another board, serial and UUID; for that it is switched off"},
	{Name: "no-link", Of: "link", Text: "pulls its network cable"},
	{Name: "link-loss", Value: "PROBABILITY", Of: "link", Text: "loses frames, each way"},
	{Name: "link-delay", Value: "DURATION", Of: "link", Text: "delays each frame, each way"},
	{Name: "link-duplicate", Value: "PROBABILITY", Of: "link", Text: "brings frames twice, each way"},
	{Name: "link-reorder", Value: "PROBABILITY", Of: "link", Text: "brings frames after the next one, each way"},
	{Name: "link-vlan", Value: "VLAN", Of: "link", Text: "puts its switch port into this VLAN: frames with its tag alone pass"},
	{Name: "restart-bmc", Of: "bmc", Once: true, Text: "restarts the BMC, now; away says how long that takes"},
	{Name: "new-certificate", Of: "redfish", Once: true, Text: "gives the BMC another certificate, now"},
}

// FaultKinds are all faults there are, in order.
func FaultKinds() []FaultKind {
	kinds := faultFields(reflect.TypeFor[BMCFaults](), nil, "", "bmc")
	for _, k := range faultMachine {
		k.Of = cmp.Or(k.Of, "machine")
		kinds = append(kinds, k)
	}
	return kinds
}

func faultFields(t reflect.Type, at []int, prefix, of string) (kinds []FaultKind) {
	for i := range t.NumField() {
		f := t.Field(i)
		field := append(slices.Clone(at), i)
		switch {
		case f.Type == reflect.TypeFor[RedfishFaults]():
			kinds = append(kinds, faultFields(f.Type, field, "", "redfish")...)
			continue
		case f.Type.Kind() == reflect.Struct:
			kinds = append(kinds, faultFields(f.Type, field, faultName(f.Name)+"-", of)...)
			continue
		}
		k := FaultKind{Name: prefix + faultName(f.Name), field: field}
		k.Of, k.Text = cmp.Or(faultOnly[k.Name], of), faultTexts[k.Name]
		switch {
		case f.Type == reflect.TypeFor[time.Duration]():
			k.Value = "DURATION"
		case f.Type.Kind() == reflect.Int:
			k.Value = "COUNT"
		case f.Type.Kind() == reflect.Float64:
			k.Value = "PROBABILITY"
		case f.Type.Kind() == reflect.Slice:
			k.Value = "TEXTS"
		case f.Type.Kind() == reflect.String:
			k.Value = cmp.Or(strings.Join(faultWords[f.Type], "|"), "TEXT")
		}
		kinds = append(kinds, k)
	}
	return kinds
}

// faultName is a Go name in lower case, with hyphens between its words.
func faultName(field string) string {
	field = strings.NewReplacer("ETag", "Etag", "EFI", "Efi", "POST", "Post").Replace(field)
	var b strings.Builder
	for i, c := range field {
		if unicode.IsUpper(c) && i > 0 {
			b.WriteByte('-')
		}
		b.WriteRune(unicode.ToLower(c))
	}
	return b.String()
}

// ParseFault reads "hang" or "delay=2s".
func ParseFault(text string) (Fault, error) {
	name, value, given := strings.Cut(text, "=")
	var names []string
	for _, k := range FaultKinds() {
		names = append(names, k.Name)
		if k.Name != name {
			continue
		}
		switch {
		case k.Value == "" && given:
			return Fault{}, fmt.Errorf("fault %q: it takes no value; say %s", text, name)
		case k.Value != "" && value == "":
			return Fault{}, fmt.Errorf("fault %q: it needs a value; say %s=%s", text, name, faultExample(k))
		}
		f := Fault{name, value}
		return f, f.check(k)
	}
	near := inventory.DidYouMean(name, names)
	if !strings.HasPrefix(near, "did you mean") {
		return Fault{}, fmt.Errorf("there is no fault %q; recast lab fault --help lists them", name)
	}
	return Fault{}, fmt.Errorf("there is no fault %q; %s recast lab fault --help lists all", name, near)
}

func faultExample(k FaultKind) string {
	if example := map[string]string{"DURATION": "2s", "COUNT": "1", "SIZE": "4MiB", "PROBABILITY": "0.15", "VLAN": "100", "TEXTS": "A,B"}[k.Value]; example != "" {
		return example
	}
	word, _, _ := strings.Cut(k.Value, "|")
	return word
}

func (f Fault) check(k FaultKind) error {
	ok := true
	switch k.Value {
	case "", "TEXT", "TEXTS":
	case "DURATION":
		d, err := time.ParseDuration(f.Value)
		ok = err == nil && d > 0
	case "COUNT":
		n, err := strconv.Atoi(f.Value)
		ok = err == nil && n > 0
	case "SIZE":
		n, err := inventory.ParseSize(f.Value)
		ok = err == nil && n > 0
	case "VLAN":
		n, err := strconv.Atoi(f.Value)
		ok = err == nil && n >= 1 && n <= 4094
	case "PROBABILITY":
		p, err := strconv.ParseFloat(f.Value, 64)
		ok = err == nil && p > 0 && p <= 1
	default:
		ok = slices.Contains(strings.Split(k.Value, "|"), f.Value)
	}
	if !ok {
		return fmt.Errorf("fault %q: %s", f.String(), faultWants(k))
	}
	return nil
}

func faultWants(k FaultKind) string {
	want := map[string]string{"DURATION": "a time such as 2s", "COUNT": "a count such as 1", "SIZE": "a size such as 4MiB",
		"PROBABILITY": "a number above 0 and up to 1, such as 0.15", "VLAN": "a number from 1 to 4094"}[k.Value]
	return "want " + cmp.Or(want, "one of "+strings.ReplaceAll(k.Value, "|", ", "))
}

// kind of the fault, which ParseFault has found.
func (f Fault) kind() FaultKind {
	for _, k := range FaultKinds() {
		if k.Name == f.Name {
			return k
		}
	}
	return FaultKind{}
}

// set writes it into the faults of a BMC.
func (f Fault) set(k FaultKind, faults *BMCFaults) {
	v := reflect.ValueOf(faults).Elem().FieldByIndex(k.field)
	switch {
	case k.Value == "":
		v.SetBool(true)
	case k.Value == "DURATION":
		d, _ := time.ParseDuration(f.Value)
		v.SetInt(int64(d))
	case k.Value == "COUNT":
		n, _ := strconv.Atoi(f.Value)
		v.SetInt(int64(n))
	case k.Value == "PROBABILITY":
		p, _ := strconv.ParseFloat(f.Value, 64)
		v.SetFloat(p)
	case k.Value == "TEXTS":
		v.Set(reflect.ValueOf(strings.Split(f.Value, ",")))
	default:
		v.SetString(f.Value)
	}
}

// onCable puts it over the cable that the machine has.
func (f Fault) onCable(c *Cable) {
	share, _ := strconv.ParseFloat(f.Value, 64) // ParseFault has read it
	switch f.Name {
	case "link-loss":
		c.Loss = share
	case "link-duplicate":
		c.Duplicate = share
	case "link-reorder":
		c.Reorder = share
	case "link-delay":
		c.Delay, _ = time.ParseDuration(f.Value)
	case "link-vlan":
		vlan, _ := strconv.ParseUint(f.Value, 10, 16)
		c.VLAN = uint16(vlan)
	}
}

// fits says in one line why a machine cannot have it; "" where it can.
func (f Fault) fits(name string, bmc RackBMC) error {
	k := f.kind()
	switch {
	case k.Of == "link" || k.Of == "machine":
	case bmc == BMCNone || bmc == "":
		return fmt.Errorf("%s cannot have the fault %q: it has no BMC", name, f.Name)
	case k.Of == "redfish" && bmc != BMCRedfish:
		return fmt.Errorf("%s cannot have the fault %q: its BMC speaks IPMI, the fault is one of Redfish", name, f.Name)
	case k.Of == "ipmi" && bmc != BMCIPMI:
		return fmt.Errorf("%s cannot have the fault %q: its BMC speaks Redfish, the fault is one of IPMI", name, f.Name)
	}
	return nil
}
