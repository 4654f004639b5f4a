"""The statuses that the specification forgets, each with the reason why the vault answers with it.

What is not listed here or in the specification is a failure, and so is a body that is not the documented error.
"""

import schemathesis

ANY = "any operation"
FORGOTTEN = {
    # Every operation demands a key (`security` at the top), and none says what comes of having none.
    401: ANY,
    # An update of an object that is not there; reading and deleting it document the same.
    404: ["PUT /vault/v1/kv/{id}"],
}


@schemathesis.hook
def before_load_schema(context, schema):
    error = {"$ref": "#/components/schemas/Error"}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            for status, where in FORGOTTEN.items():
                if where == ANY or f"{method.upper()} {path}" in where:
                    answer = {"description": "Forgotten.", "content": {"application/json": {"schema": error}}}
                    operation["responses"].setdefault(str(status), answer)
    # A name of no characters is 422: there would be no path to read it by.
    schema["components"]["schemas"]["CreateObjectRequest"]["properties"]["name"]["minLength"] = 1
