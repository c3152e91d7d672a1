package store

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/http"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
)

// azureHints says what to do about an error code of Azure
// (https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes).
// %s is the container.
var azureHints = map[bloberror.Code]struct{ message, hint string }{
	bloberror.ContainerNotFound:               {"container %s does not exist", "create it, or check its name and account in the storage URL"},
	bloberror.ContainerDisabled:               {"container %s is disabled", "ask its owner"},
	bloberror.ContainerBeingDeleted:           {"container %s is being deleted", "use another, or create it anew when it is gone"},
	bloberror.AccountIsDisabled:               {"the account of container %s is disabled", "look at its subscription"},
	bloberror.AuthorizationFailure:            {"access to container %s is denied", "does the account's firewall admit this machine, and are the credentials its own?"},
	bloberror.AuthorizationPermissionMismatch: {"access to container %s is denied", "assign the role Storage Blob Data Contributor on it to edge's identity; that takes some minutes to work"},
	bloberror.InsufficientAccountPermissions:  {"access to container %s is denied", "assign the role Storage Blob Data Contributor on it to edge's identity"},
	bloberror.AuthenticationFailed:            {"the credentials for container %s are not accepted", "check account, " + azureKey + " or " + azureConnection + ", and this machine's clock"},
	bloberror.InvalidAuthenticationInfo:       {"the credentials for container %s are not accepted", "check the tenant of edge's identity and this machine's clock"},
	bloberror.NoAuthenticationInformation:     {"container %s wants credentials", "set " + azureKey + " or use an identity"},
	"KeyBasedAuthenticationNotPermitted":      {"the account of container %s refuses keys", "unset " + azureKey + " and " + azureConnection + ", and use an identity"},
	bloberror.ServerBusy:                      {"the server of container %s is busy", "edge tries again by itself"},
	bloberror.ConditionHeadersNotSupported:    {"the server of container %s lacks a feature", "edge needs If-Match and If-None-Match"},
	"BlobImmutableDueToPolicy":                {"container %s forbids changes", "edge needs one without an immutability policy"},
}

// explain turns an error of the SDK into one line for the operator. The SDK's
// own text, which has many lines and quotes requests, stays behind Unwrap.
func (d *azureDriver) explain(err error) error {
	if err == nil || errors.Is(err, ErrTooLarge) {
		return err
	}
	if _, ok := errors.AsType[*credentialsError](err); ok {
		return &fault{
			fmt.Sprintf("no credentials for container %s", d.bucket),
			"set " + azureKey + " or " + azureConnection + ", or run with workload identity or a managed identity; AZURE_CLIENT_ID chooses one", err,
		}
	}
	re, ok := errors.AsType[*azcore.ResponseError](err)
	if !ok {
		return peer{cmp.Or(d.endpoint, "Azure Blob Storage"), "account and endpoint", systemTrust}.explain(err)
	}
	code := bloberror.Code(re.ErrorCode)
	known, ok := azureHints[code]
	switch {
	case ok:
		return &responseError{fault{fmt.Sprintf(known.message, d.bucket), known.hint, err}, re.StatusCode}
	case code == bloberror.BlobNotFound, code == "" && re.StatusCode == http.StatusNotFound:
		return &responseError{fault{fs.ErrNotExist.Error(), "", errors.Join(fs.ErrNotExist, err)}, re.StatusCode}
	case re.StatusCode == http.StatusForbidden || re.StatusCode == http.StatusUnauthorized:
		denied := azureHints[bloberror.AuthorizationPermissionMismatch]
		return &responseError{fault{fmt.Sprintf(denied.message, d.bucket), denied.hint, err}, re.StatusCode}
	}
	return &responseError{fault{fmt.Sprintf("container %s answered %d %s", d.bucket, re.StatusCode, oneLine(re.ErrorCode)), "", err}, re.StatusCode}
}

// isAzureConflict reports whether a conditional write lost. BlobAlreadyExists
// is what If-None-Match gets, BlobNotFound If-Match on a blob that is gone.
func isAzureConflict(err error) bool {
	return errors.Is(err, fs.ErrNotExist) ||
		bloberror.HasCode(err, bloberror.ConditionNotMet, bloberror.BlobAlreadyExists, bloberror.TargetConditionNotMet)
}
