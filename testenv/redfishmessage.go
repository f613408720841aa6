package testenv

import (
	"strconv"
	"strings"
)

// redfishTexts are the messages of the registries Base 1.19 and ResourceEvent 1.3
// (DSP8011) that the BMC sends; %1 is an argument.
var redfishTexts = map[string]struct{ text, severity, resolution string }{
	"Base.Success":                       {"The request completed successfully.", "OK", "None."},
	"Base.GeneralError":                  {"A general error has occurred.  See Resolution for information on how to resolve the error, or @Message.ExtendedInfo if Resolution is not provided.", "Critical", "Read the resource again."},
	"Base.InternalError":                 {"The request failed due to an internal service error.  The service is still operational.", "Critical", "Resubmit the request.  If the problem persists, consider resetting the service."},
	"Base.MalformedJSON":                 {"The request body submitted was malformed JSON and could not be parsed by the receiving service.", "Critical", "Ensure that the request body is valid JSON and resubmit the request."},
	"Base.PropertyUnknown":               {"The property %1 is not in the list of valid properties for the resource.", "Warning", "Remove the unknown property from the request body and resubmit the request if the operation failed."},
	"Base.PropertyMissing":               {"The property %1 is a required property and must be included in the request.", "Warning", "Ensure that the property is in the request body and has a valid value and resubmit the request if the operation failed."},
	"Base.PropertyNotWritable":           {"The property %1 is a read-only property and cannot be assigned a value.", "Warning", "Remove the property from the request body and resubmit the request if the operation failed."},
	"Base.PropertyValueNotInList":        {"The value '%1' for the property %2 is not in the list of acceptable values.", "Warning", "Choose a value from the enumeration list that the implementation can support and resubmit the request if the operation failed."},
	"Base.PropertyValueFormatError":      {"The value '%1' for the property %2 is not a format that the property can accept.", "Warning", "Correct the value for the property in the request body and resubmit the request if the operation failed."},
	"Base.PropertyValueConflict":         {"The property '%1' could not be written because its value would conflict with the value of the '%2' property.", "Warning", "No resolution is required."},
	"Base.ActionParameterMissing":        {"The action %1 requires the parameter %2 to be present in the request body.", "Critical", "Supply the action with the required parameter in the request body when the request is resubmitted."},
	"Base.ActionParameterNotSupported":   {"The parameter %1 for the action %2 is not supported on the target resource.", "Warning", "Remove the parameter supplied and resubmit the request if the operation failed."},
	"Base.ActionParameterValueNotInList": {"The value '%1' for the parameter %2 in the action %3 is not in the list of acceptable values.", "Warning", "Choose a value from the enumeration list that the implementation can support and resubmit the request if the operation failed."},
	"Base.ActionParameterValueConflict":  {"The parameter '%1' with the requested value of '%2' does not meet the constraints of the implementation.", "Warning", "Resubmit the action with a parameter value that matches the state of the resource."},
	"Base.ResourceMissingAtURI":          {"The resource at the URI '%1' was not found.", "Critical", "Place a valid resource at the URI or correct the URI and resubmit the request."},
	"Base.ResourceAlreadyExists":         {"The requested resource of type %1 with the property %2 with the value '%3' already exists.", "Critical", "Do not repeat the create operation as the resource was already created."},
	"Base.ResourceInUse":                 {"The change to the requested resource failed because the resource is in use or in transition.", "Warning", "Remove the condition and resubmit the request if the operation failed."},
	"Base.ResourceCannotBeDeleted":       {"The delete request failed because the resource requested cannot be deleted.", "Critical", "Do not attempt to delete a non-deletable resource."},
	"Base.ResourceAtUriUnauthorized":     {"While accessing the resource at '%1', the service received an authorization error '%2'.", "Critical", "Ensure that the appropriate access is provided for the service in order for it to access the URI."},
	"Base.NoValidSession":                {"There is no valid session established with the implementation.", "Critical", "Establish a session before attempting any operations."},
	"Base.SessionLimitExceeded":          {"The session establishment failed due to the number of simultaneous sessions exceeding the limit of the implementation.", "Critical", "Reduce the number of other sessions before trying to establish the session or increase the limit of simultaneous sessions, if supported."},
	"Base.PasswordChangeRequired":        {"The password provided for this account must be changed before access is granted.  PATCH the Password property for this account located at the target URI '%1' to complete this process.", "Critical", "Change the password for this account using a PATCH to the Password property at the URI provided."},
	"Base.InsufficientPrivilege":         {"There are insufficient privileges for the account or credentials associated with the current session to perform the requested operation.", "Critical", "Either abandon the operation or change the associated access rights and resubmit the request if the operation failed."},
	"Base.OperationNotAllowed":           {"The HTTP method is not allowed on this resource.", "Critical", "None."},
	"Base.QueryNotSupported":             {"Querying is not supported by the implementation.", "Warning", "Remove the query parameters and resubmit the request if the operation failed."},
	"Base.HeaderInvalid":                 {"Header '%1' is invalid.", "Critical", "Resubmit the request with a valid request header."},
	"Base.PreconditionFailed":            {"The ETag supplied did not match the ETag required to change this resource.", "Critical", "Try the operation again using the appropriate ETag."},
	"Base.PreconditionRequired":          {"A precondition header or annotation is required to change this resource.", "Critical", "Try the operation again using an If-Match or If-None-Match header and appropriate ETag."},
	"Base.ServiceTemporarilyUnavailable": {"The service is temporarily unavailable.  Retry in %1 seconds.", "Critical", "Wait for the indicated retry duration and retry the operation."},
	"Base.SourceDoesNotSupportProtocol":  {"The other end of the connection at '%1' does not support the specified protocol %2.", "Critical", "Change protocols or URIs."},
	"Base.OperationFailed":               {"An error occurred internal to the service as part of the overall request.  Partial results may have been returned.", "Warning", "Resubmit the request.  If the problem persists, consider resetting the service or provider."},

	"ResourceEvent.ResourceChanged":    {"One or more resource properties have changed.", "OK", "None."},
	"ResourceEvent.ResourceCreated":    {"The resource has been created successfully.", "OK", "None."},
	"ResourceEvent.ResourcePoweredOn":  {"The resource `%1` has powered on.", "OK", "None."},
	"ResourceEvent.ResourcePoweredOff": {"The resource `%1` has powered off.", "OK", "None."},
	"ResourceEvent.TestMessage":        {"Test message.", "OK", "None."},

	// What vendors send in their own words, as the clients know it.
	"Future.OperationSupportedInFutureStateURI": {"The operation is supported at the future state URI '%1'.", "Critical", "Send the request to that URI."},
	"POST.UnableToModifyDuringSystemPOST":       {"Unable to modify while the system is in POST.", "Critical", "Wait until the system has started."},
	"Job.PendingConfiguration":                  {"Pending configuration values are already committed, unable to perform another set operation.", "Critical", "Wait for the scheduled job to complete or delete it."},
}

var redfishRegistries = map[string]string{
	"Base": "Base.1.19", "ResourceEvent": "ResourceEvent.1.3", "Future": "Ami.1.0", "POST": "iLO.2.14", "Job": "IDRAC.2.8",
}

// redfishProperty is which argument of a message is the property that it is about.
var redfishProperty = map[string]int{
	"PropertyUnknown": 0, "PropertyMissing": 0, "PropertyNotWritable": 0, "PropertyValueNotInList": 1, "PropertyValueFormatError": 1,
	"PropertyValueConflict": 0, "ActionParameterMissing": 1, "ActionParameterNotSupported": 0, "ActionParameterValueNotInList": 1,
	"ActionParameterValueConflict": 0,
}

// redfishMessage is one message; id is of the Base registry unless it names another.
func redfishMessage(id string, args ...string) map[string]any {
	registry, name, ok := strings.Cut(id, ".")
	if !ok {
		registry, name = "Base", id
	}
	m, known := redfishTexts[registry+"."+name]
	if !known {
		panic("no Redfish message " + id)
	}
	text := m.text
	for i, arg := range args {
		text = strings.ReplaceAll(text, "%"+strconv.Itoa(i+1), arg)
	}
	message := map[string]any{
		"@odata.type": "#Message.v1_3_0.Message", "MessageId": redfishRegistries[registry] + "." + name,
		"Message": text, "MessageSeverity": m.severity, "Severity": m.severity, "Resolution": m.resolution,
	}
	if len(args) > 0 {
		message["MessageArgs"] = args
	}
	if i, ok := redfishProperty[name]; ok && i < len(args) && args[i] != "" {
		message["RelatedProperties"] = []string{"#/" + args[i]}
	}
	return message
}
