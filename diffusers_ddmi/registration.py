# Copyright 2026 The diffusers_ddmi Authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Makes diffusers' loaders find our classes.

`DiffusionPipeline.from_pretrained` and `AutoModel.from_pretrained` look classes up by name: pipelines and models on the
top level of `diffusers`, components in libraries that `LOADABLE_CLASSES` lists, whose base classes are attributes of
the library itself. diffusers has no public hook for that, so this module, and only this module, touches its internals;
the range of diffusers versions in setup.cfg is the one it was tested with.
"""

import diffusers
from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.pipelines import pipeline_loading_utils


PACKAGE = __name__.split(".")[0]

#: Base classes by which diffusers recognises what it can save and load; they must be attributes of the package.
BASE_CLASSES = (ConfigMixin, ModelMixin, SchedulerMixin)


def register(public_classes: list[type]) -> None:
    """Registers models and pipelines under their own names; a name that diffusers already has is left alone."""
    for cls in public_classes:
        # diffusers writes the module's first part as the component's library into model_index.json; a full module
        # path would load from disk but not from the hub.
        cls.__module__ = PACKAGE
        # diffusers' own pipelines can be reached from `diffusers.pipelines` too, where its test tools look.
        namespaces = (diffusers, diffusers.pipelines) if issubclass(cls, DiffusionPipeline) else (diffusers,)
        for namespace in namespaces:
            if not hasattr(namespace, cls.__name__):
                setattr(namespace, cls.__name__, cls)
    loadable = pipeline_loading_utils.LOADABLE_CLASSES
    loadable.setdefault(PACKAGE, dict(loadable["diffusers"]))
